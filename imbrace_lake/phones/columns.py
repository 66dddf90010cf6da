"""Find the header of a table and its columns with phone numbers."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from imbrace_lake.errors import InputError
from imbrace_lake.phones.numbers import is_in_use, parse_cell, parse_cell_of_row, region_of_code, visible
from imbrace_lake.phones.report import COLUMN_SETTING, listed, short

_SAMPLE_ROWS = 200
_HEADER_ROWS = 30
_MIN_DIGITS = 7
_CANDIDATES_CHECKED = 20
# Header names as people write them, compared without case, spaces, digits and punctuation.
_USUAL_NAMES = re.compile(
    r"(?:(?:contact|customer|client|user|whatsapp|wa|mobile|cell)?(?:tele|cell)?phone(?:s|no|num|numbers?|e)?)"
    r"|(?:contact|mobile|cell|tel|telephone|whatsapp|msisdn|wa)(?:s|no|num|numbers?)?|(?:whatsapp|wa)id|e|ph(?:no|num|number)"
    r"|(?:tele(?:f|ph)on|handy|mobil|mobiltelefon|ruf)(?:nummer|nr)?|telefoon(?:nummer)?|(?:no|nomor)?(?:hp|telepon|telefon)|(?:no|nomor)wa"
    r"|(?:n[uú]mero(?:de)?)?(?:tel[eé]fono|telefone|t[eé]l[eé]phone|telem[oó]vel|celular|m[oó]vil|cellulare)|portable"
    r"|(?:номер)?(?:телефона?|мобильный)|điệnthoại|sốđiệnthoại|sđt|เบอร์โทร(?:ศัพท์)?|(?:رقم)?(?:ال)?(?:هاتف|جوال)"
)
_E164 = re.compile(r"e[ ._-]?164", re.IGNORECASE)
# A name with one of these words denotes phone numbers: Mobile Phone, phone_2, Phone 1 - Value, billing_phone.
_PHONE_WORD = re.compile(
    r"phones?|t[eé]l|mob(?:ile?)?|(?:cell|mobile|home|other|work)(?:phone)?|gsm|whatsapp|msisdn|mobil(?:nummer|nr)"
    r"|\w*(?:t[eé]l[eé](?:f|ph)[oóô]n|telefoon|телефон|τηλ[εέ]φων)"
    r"(?:e[ns]?|os?|s|i|u|y|a|ní|nummern?|nr|szám|lar[ıi]|ы|а|у|ο|α)?|puhelin(?:numero)?|đt"
    r"|rufnummer|handy(?:nummer|nr)?|telepon|telp|tlf|tfno|telem[oó]vel|celular(?:es)?|cellular[ei]|m[oó]vil(?:es)?"
    r"|kom[oó]rka|мобильн\w+|сотов\w+|тел|κινητ[οό]|(?:ال)?(?:هاتف|جوال|محمول|موبايل|تليفون)|تلفن|موبایل|ה?(?:טלפון|נייד)"
)
# These do not suffice beside a word for another number: Work Order.
_KINDS = frozenset({"home", "other", "work"})
# The same in scripts without blanks between words, or whose marks divide words for `re`.
_PHONE_PART = re.compile("電話|手機|携帯|电话|手机|전화|휴대폰|휴대전화|โทร|điện thoại|sđt|फ़ोन|फोन|मोबाइल")
# Not together with one of these words: Phone 1 - Label, phone_verified_at.
_ABOUT_A_PHONE = re.compile(
    r"label|type|kind|key|name|model|brand|carrier|operator|country|region|code|prefix|ext(?:ension)?|verified|valid"
    r"|status|state|consent|opt|date|time|created|updated|count|os|version|plan|hash|notes?|comment|format|source|typ"
    r"|bezeichnung|[eé]tiqu?eta?|libell[eé]|etichetta|etykieta|etiket|метка|tip[oe]?|t[uü]r[uü]?|soort|rodzaj|jenis|тип|loại"
    r"|نوع|סוג|modell|marke|anbieter|vertrag|vorwahl|indicatif|prefijo|land|datum|fecha"
)
_ABOUT_PART = re.compile("標籤|标签|ラベル|라벨|ประเภท")
# A column with one of these words is never chosen: Business Fax, customer_id.
_NEVER_A_PHONE = re.compile(
    r"\w*fax|faks\w*|факс\w*|t[eé]l[eé]copie(?:ur)?|(?:ال)?فاكس|ה?פקס|φαξ|pager|telex|isdn|uuid|guid|imei|iccid"
    r"|(?:contact|customer|client|user|member|lead|person|company|record|external|crm)?ids?"
    r"|amount|total|price|zip|postal|postcode|plz|postleitzahl"
)
# Nor a column with one of these, unless it has a word for phones too: Account Number, but Account Phone.
_OTHER_NUMBER = re.compile(
    r"order|invoice|account|customer|client|member|case|card|policy|contract|employee|patient|loyalty|tax|booking"
    r"|ticket|serial|sku|iban|vat|passport|reference|ref|konto|tracking"
    r"|(?:kunden|bestell|auftrags|rechnungs|konto|mitglieds|vertrags|steuer|sendungs|artikel)(?:nummer|nr)"
)
_NEVER_PART = re.compile(
    "傳真|传真|ファックス|팩스|แฟ[กค]ซ์|證字號|证号|邮编|郵遞區號|郵便番号|帳號|账号|"
    "型號|型号|類型|类型|種類|日期|国码|國碼|編號|编号"
)
# Columns with the country codes of the numbers beside them, compared like _USUAL_NAMES.
_CODE_NAMES = re.compile(
    r"(?:contact|customer|client|user)?(?:(?:tele|cell|mobile)?phone|mobile|cell|tel|whatsapp|wa)?"
    r"(?:country|intl|international)?(?:dial(?:l?ing)?|calling|country|intl|international)(?:phone)?(?:code|prefix)"
    r"|(?:länder|landes)(?:vorwahl|kennzahl)|indicatif(?:du)?pays|prefijo(?:de)?pa[ií]s"
    r"|國碼|国码|(?:國際|国际)(?:電話|电话)?(?:冠碼|冠码|區號|区号)|(?:國家|国家)(?:代碼|代码|區號|区号)|国番号"
)
# A prefix can also be the title of a person, and a code anything.
_PERHAPS_CODE_NAMES = re.compile(
    r"(?:(?:tele|cell|mobile)?phone|mobile|cell|tel|whatsapp|wa)(?:prefix|code|cc)|prefix|cc|isd(?:code)?"
)
# Columns with the first digits of the numbers beside them, compared likewise.
_AREA_NAMES = re.compile(
    r"(?:(?:tele)?phone|tel|home|work|business)?(?:area|city|std)code|(?:orts|telefon)?vorwahl|ddd|lada|prefisso"
    r"|c[oó]digo(?:de)?[aá]rea|区号|區號|區碼|区码|市外局番|kengetal|netnummer|riktnummer"
)
_AREA_CODE = re.compile(r"\(?(0?[1-9]\d{0,4})\)?(?:\.0+)?")
_WORD = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_DATE = re.compile(r"\d{4}[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./]\d{4}|\d\d?:\d\d(?::\d\d)?")
_DIGITS_ONLY = re.compile(r"[+(]?\d[\d\s().,/+-]*")
_EXPLICIT = re.compile(
    r"\(?(?:\+|＋|00[1-9]|tel:|whatsapp:|(?:https?://)?(?:\w+\.)?(?:wa\.me|whatsapp\.com)/)"
    r"|.*@(?:s\.whatsapp\.net|c\.us)$",
    re.IGNORECASE,
)
# For Arrow's RE2, where only classes of Unicode cover full-width digits and blanks that do not break.
_GROUPS = r"\p{N}[\p{N}\p{Z}\p{Cf}\p{Pd}\t()./]{5,}\p{N}"
_BLANK = r"[\p{Z}\p{Cf}\t"
_WITH_CODE = (
    rf"[+＋]{_BLANK}(]{{0,3}}{_GROUPS}"
    r"|(?:wa\.me/|phone=)(?:\+|%2B)?\d{7,}|\d{7,}@(?:s\.whatsapp\.net|c\.us)"
)
# Cells with several lines are also the rest of a table after a quotation mark without an end.
_BARE = rf"(?m)(?:^|[,;:|&]){_BLANK}\"'=(]*{_GROUPS}{_BLANK}\"')]*(?:[,;|&(\r]|$)"
_IN_TEXT = re.compile(r"[+＋][\s(]{0,3}\d[\d\s().\-‑/]{5,20}\d")
_CHARACTERS_CHECKED = 4096


@dataclass(frozen=True, slots=True)
class Wanted:
    """The columns and the sheet to read from a list.

    Attributes:
        column: Names or positions of columns, separated by commas; None to find those with phone numbers.
        usual: The default column of a list of ids; None for phone numbers.
        region: The default region of the numbers.
        sheet: Name or position of the sheet of a spreadsheet; None for the first.
    """

    column: str | None = None
    usual: str | None = None
    region: str | None = None
    sheet: str | None = None

    def is_named(self, name: str) -> bool:
        """Return whether a cell is the name of a wanted column."""
        names = [self.usual] if self.column is None else [self.column, *split_columns(self.column)]
        return any(_plain(name) == _plain(wanted) for wanted in names if wanted)

    def is_header_name(self, name: str) -> bool:
        """Return whether a cell is the name of a column to read."""
        return self.is_named(name) or (self.usual is None and is_phone_name(name))


def split_columns(column: str) -> list[str]:
    """Split names at commas; a name that contains a comma may be quoted, as in CSV."""
    row: list[str] = next(csv.reader([column], skipinitialspace=True), [])
    return [name for cell in row if (name := cell.strip())]


def join_columns(columns: Sequence[str] | None) -> str | None:
    """Join names into one text, the reverse of :func:`split_columns`."""
    if not columns:
        return None
    if len(columns) == 1:
        return columns[0]
    return ",".join(f'"{name}"' if "," in name and '"' not in name else name for name in columns)


def find_header(rows: Sequence[Sequence[str]], wanted: Wanted) -> int | None:
    """Find the header among the first rows of a table; the rows above it are titles.

    A row with a phone number, or with a cell that has only digits, is never a header, unless one of its
    cells is the name of a wanted column.

    Returns:
        The index of the header, or None if there is none.
    """
    filled = [index for index, row in enumerate(rows) if any(map(str.strip, row))][:_HEADER_ROWS]
    known: int | None = None
    for index in filled:
        if any(_has_number(cell, wanted.region) for cell in rows[index]):
            break
        if any(map(wanted.is_header_name, rows[index])):
            if _width(rows[index]) > 1:
                return index
            # One cell may be a title, such as "Phone numbers" above "name, phone".
            known = index if known is None else known
    if known is not None:
        return known
    if wanted.usual is not None and wanted.column is None:
        return filled[0] if filled else None
    is_wide = sum(_width(rows[index]) > 1 for index in filled) * 2 > len(filled)
    for index in filled:
        cells = rows[index]
        if any(_has_number(cell, wanted.region) or _DIGITS_ONLY.fullmatch(cell.strip()) for cell in cells):
            return None
        if not is_wide or _width(cells) > 1:
            return index
    return None


def _width(row: Sequence[str]) -> int:
    return sum(bool(cell.strip()) for cell in row)


def choose_columns(
    names: Sequence[str] | None, rows: Sequence[Sequence[str]], wanted: Wanted, source: str
) -> list[int]:
    """Return the indexes of the columns to read.

    Without `wanted.column`, these are all columns with a name for phone numbers, and all others that have
    mostly numbers with a plus sign or, if no name matches, a leading zero. If there are none, it is the only
    column, or the only one with mostly phone numbers. Columns with a name for ids or fax numbers are never
    chosen.

    Args:
        names: The header, or None if there is none.
        rows: A sample of the rows; a short row lacks its last cells.
        wanted: What to read.
        source: The name of the list in errors.

    Raises:
        InputError: There is no such column, no column with phone numbers, or more than one candidate.
    """
    rows = rows[:_SAMPLE_ROWS]
    width = max([len(names or ()), *map(len, rows)])
    shown = column_names(names, width)
    if wanted.column is not None:
        is_one = any(_plain(name) == _plain(wanted.column) for name in shown)
        parts = [wanted.column] if is_one else split_columns(wanted.column) or [wanted.column]
        return sorted({_named_column(shown, part, source) for part in parts})
    if wanted.usual is not None:
        return [_named_column(shown, wanted.usual, source)]
    cells = [
        [row[index] for row in rows if index < len(row) and row[index].strip()] for index in range(width)
    ]
    free = [index for index, name in enumerate(shown) if names is None or not is_other_name(name)]
    named = [index for index in free if index < len(names or ()) and is_phone_name(shown[index])]
    # A column `contact` can have names, and `mobile` yes and no.
    numbered = [index for index in named if not cells[index] or any(map(_has_digits, cells[index]))]
    # Beside a column of phone numbers, a leading zero proves nothing: account numbers also have one.
    proof = _is_explicit if numbered else _is_dialled
    explicit = [index for index in free if _mostly(cells[index], wanted.region, proof)]
    if named or explicit:
        return sorted({*(numbered or named), *explicit})
    return [0] if width == 1 and free else _likely_column(shown, free, cells, wanted.region, source)


def choose_code_columns(
    names: Sequence[str] | None, rows: Sequence[Sequence[str]], chosen: Sequence[int]
) -> list[int]:
    """Return the indexes of the columns with the country codes of the numbers in the chosen columns.

    Their names denote such codes or, if a name may mean anything else, all their values are digits of codes.

    Args:
        names: The header; without one there is no such column.
        rows: A sample of the rows.
        chosen: The columns of numbers.
    """

    def is_code(index: int, name: str) -> bool:
        plain = re.sub(r"\d+", "", _plain(name))
        if not _PERHAPS_CODE_NAMES.fullmatch(plain):
            return _CODE_NAMES.fullmatch(plain) is not None
        cells = [row[index] for row in rows if index < len(row) and row[index].strip()]
        return bool(cells) and all(region_of_code(cell) and any(map(str.isdecimal, cell)) for cell in cells)

    return [index for index, name in enumerate(names or ()) if index not in chosen and is_code(index, name)]


def reject_area_codes(
    names: Sequence[str] | None,
    rows: Sequence[Sequence[str]],
    chosen: Sequence[int],
    codes: Sequence[int],
    region: str | None,
    source: str,
) -> None:
    """Reject a list of numbers whose area codes are in another column.

    Without its area code, a number would be invalid, or another one.

    Args:
        names, rows: As for :func:`choose_columns`.
        chosen: The columns of numbers.
        codes: The columns of their country codes.
        region: The default region.
        source: The name of the list in errors.

    Raises:
        InputError: Most numbers of a column are complete only with the area code of their row.
    """
    for area, name in enumerate(names or ()):
        if area in chosen or not _AREA_NAMES.fullmatch(re.sub(r"\d+", "", _plain(name))):
            continue
        for column in chosen:
            filled = [
                row for row in rows if max(area, column) < len(row) and row[area].strip() and row[column]
            ]
            divided = 0
            for row in filled:
                of_row = [row[index] for index in codes if index < len(row) and row[index].strip()]
                divided += _is_divided(row[area], row[column], of_row, region)
            if 2 * divided > len(filled):
                raise InputError(
                    f"{source} has the area codes of its phone numbers in another column, {short(name)}: join"
                    f" the columns, or choose with {COLUMN_SETTING} if the numbers are complete."
                )


def _is_divided(area: str, text: str, codes: Sequence[str], region: str | None) -> bool:
    """Return whether a number is complete only with the area code of its row."""
    code, number = _AREA_CODE.fullmatch(visible(area)), visible(text).lstrip("(（")
    has_country = region is not None or bool(codes)
    if code is None or not has_country or number.startswith(("+", "＋", "0")):
        return False

    def is_complete(some: str) -> bool:
        return any(isinstance(one, str) and is_in_use(one) for one in parse_cell_of_row(some, codes, region))

    has_area_code = number.startswith(code[1].removeprefix("0")) and is_complete(number)
    return not has_area_code and is_complete(code[1] + number)


def _likely_column(
    shown: Sequence[str], free: Sequence[int], cells: Sequence[Sequence[str]], region: str | None, source: str
) -> list[int]:
    """Return the only column whose values are mostly phone numbers."""
    for test in (_is_phone, _is_phone_like):
        likely = [index for index in free if _mostly(cells[index], region, test)]
        if len(likely) > 1:
            names = listed([shown[index] for index in likely])
            raise InputError(
                f"{source} has several columns that may contain phone numbers, {names}: choose with"
                f" {COLUMN_SETTING}."
            )
        if likely:
            return likely
    raise InputError(
        f"{source} has no column that is clearly phone numbers, only {listed(shown)}: choose one with"
        f" {COLUMN_SETTING}."
    )


def column_names(names: Sequence[str] | None, width: int) -> list[str]:
    """Return the name of each column, or its position (from 1) if it has none."""
    known = list(names or ())
    return known + [str(index + 1) for index in range(len(known), width)]


def count_numbers(values: pa.Array, region: str | None) -> int:
    """Count the cells of a column that look like phone numbers."""
    with_code = pc.fill_null(pc.match_substring_regex(values, _WITH_CODE), False)
    bare = pc.and_not(pc.fill_null(pc.match_substring_regex(values, _BARE), False), with_code)
    return sum(_count_checked(values.filter(mask), region) for mask in (with_code, bare))


def _count_checked(candidates: pa.Array, region: str | None) -> int:
    """Return the number of all candidates if one of some is a phone number, else 0."""
    step = max(1, len(candidates) // _CANDIDATES_CHECKED)
    some = candidates[::step].to_pylist()
    # Also within other words, as in a note.
    parts = (part for text in some for part in (text[:_CHARACTERS_CHECKED], *_IN_TEXT.findall(text)[:3]))
    found = (one for part in parts for one in parse_cell(part, region))
    return len(candidates) if any(isinstance(one, str) and is_in_use(one) for one in found) else 0


def is_phone_name(name: str) -> bool:
    """Return whether the name of a column denotes phone numbers."""
    if _E164.fullmatch(name.strip()) or _USUAL_NAMES.fullmatch(
        re.sub(r"\d+", "", _plain(_E164.sub("", name)))
    ):
        return True
    words, text = _words(name), _folded(name)
    if is_other_name(name) or any(map(_ABOUT_A_PHONE.fullmatch, words)) or _ABOUT_PART.search(text):
        return False
    return any(map(_PHONE_WORD.fullmatch, words)) or _PHONE_PART.search(text) is not None


def is_other_name(name: str) -> bool:
    """Return whether the name of a column denotes ids, fax numbers or the like."""
    if _USUAL_NAMES.fullmatch(re.sub(r"\d+", "", _plain(name))):
        return False
    words = _words(name)
    if any(map(_NEVER_A_PHONE.fullmatch, words)) or _NEVER_PART.search(_folded(name)):
        return True
    is_phone = any(map(_PHONE_WORD.fullmatch, words - _KINDS)) or _PHONE_PART.search(_folded(name))
    return not is_phone and any(map(_OTHER_NUMBER.fullmatch, words))


def _folded(name: str) -> str:
    # Names typed on a Mac, or in full width, use other code points for the same letters.
    return unicodedata.normalize("NFKC", name).casefold()


def _words(name: str) -> set[str]:
    return {*_WORD.findall(_folded(name)), *_WORD.findall(_folded(_CAMEL.sub(" ", name)))}


def _named_column(names: Sequence[str], column: str, source: str) -> int:
    for same in (str, str.strip, _plain):
        matches = [index for index, name in enumerate(names) if same(name) == same(column)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise InputError(f"{source} has several columns {column!r}: give the column's number instead.")
    if column.isdecimal() and 1 <= int(column) <= len(names):
        return int(column) - 1
    raise InputError(f"{source} has no column {column!r}, only {listed(names)}.")


def _plain(name: str) -> str:
    return re.sub(r"[\s\W_]+", "", _folded(name)) or name


def _mostly(values: Sequence[str], region: str | None, test: Callable[[str, str | None], bool]) -> bool:
    return 2 * sum(test(value, region) for value in values) > len(values)


def _is_explicit(text: str, region: str | None) -> bool:
    return _EXPLICIT.match(visible(text)) is not None and _is_phone(text, region)


def _is_dialled(text: str, region: str | None) -> bool:
    """Return whether a cell has a number with its country code, or with the 0 that is dialled before it."""
    has_zero = visible(text).lstrip("(（").startswith("0")
    return (has_zero and _is_phone(text, region)) or _is_explicit(text, region)


def _is_phone(text: str, region: str | None) -> bool:
    return any(isinstance(one, str) for one in parse_cell(text, region))


def _is_phone_like(text: str, region: str | None) -> bool:
    """Return whether a cell looks like a phone number, even a damaged one or one without its country code."""
    count = sum(char.isdecimal() for char in text)
    has_letters = any(char.isalpha() and char not in "eE" for char in text)
    return _is_phone(text, region) or (count >= _MIN_DIGITS and count * 2 >= len(text) and not has_letters)


def _has_digits(text: str) -> bool:
    return sum(char.isdecimal() for char in text) >= _MIN_DIGITS - 2


def _has_number(text: str, region: str | None) -> bool:
    """Return whether a cell of the first rows has a number, so that its row is neither header nor title."""
    count = sum(char.isdecimal() for char in _DATE.sub("", text))
    return count >= _MIN_DIGITS or (count > 0 and _is_phone(text, region))
