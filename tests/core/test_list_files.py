"""Real list files: the columns, rows, sheets and encodings that are read, and the report."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xlwt
from odf import opendocument, table
from odf import text as odf_text
from s3fs import S3FileSystem

from imbrace_lake.errors import InputError, UsageError
from imbrace_lake.phones.lists import PhoneList, read_ids, read_phone_list
from imbrace_lake.phones.report import MAX_POSITIONS
from tools.seaweed import Seaweed

A, B, C, D = (f"+88691142597{digit}" for digit in range(1, 5))
ID = "4915112345678"  # an id that is also a possible phone number


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def read(path: Path | str, **options: Any) -> PhoneList:
    return read_phone_list(path, **options)


def phones_in(path: Path | str, **options: Any) -> list[tuple[int, str]]:
    rows = read(path, **options).table
    return list(zip(rows["position"].to_pylist(), rows["phone"].to_pylist(), strict=True))


def rejection(path: Path | str, **options: Any) -> str:
    with pytest.raises((InputError, UsageError)) as caught:
        read(path, **options)
    assert caught.value.__cause__ is None
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left_out(phones: PhoneList) -> dict[str, int]:
    return phones.report.files[0].left_out


class TestColumns:
    def test_google_contacts_with_several_numbers_in_a_cell(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "n.csv",
            "Name,Phone 1 - Label,Phone 1 - Value,Phone 2 - Label,Phone 2 - Value\n"
            "A,Mobile,+886 911 425 971 ::: +886 911 425 972,Home,\n"
            "B,Mobile,+886911425973,Work,+886911425974\n",
        )

        assert phones_in(path) == [(1, A), (1, B), (2, C), (2, D)]

    @pytest.mark.parametrize(
        "header",
        [
            "phone,phone_2",
            "phone1,phone2",
            "Phone,Mobile",
            "Mobile Phone,Home Phone",
            "Business Phone,Business Phone 2",
            "Primary Phone,Other Phone",
            "MobilePhone,HomePhone",
            "billing_phone,shipping_phone",
            "Phone (Work),Phone (Home)",
            "Emergency Contact Phone Number,WhatsApp Number",
            "電話,手機",
            "聯絡電話,公司電話",
            "Telefon,Mobiltelefon",
            "Teléfono 1,Teléfono 2",
            # One found by its name and the other by its plus signs, or both by plus signs.
            "phone,other",
            "one,other",
        ],
    )
    def test_every_column_of_phone_numbers_is_read(self, tmp_path: Path, header: str) -> None:
        path = write(tmp_path / "n.csv", f"name,{header}\nA,{A},{B}\nB,,{C}\n")

        phones = read(path)

        assert phones_in(path) == [(1, A), (1, B), (2, C)]
        assert phones.report.files[0].columns == header.split(",")
        assert phones.report.warnings() == []

    @pytest.mark.parametrize(
        "name", ["Business Fax", "fax", "傳真", "id", "customer_id", "Contact ID", "order", "since"]
    )
    def test_a_column_that_is_left_out_is_reported_with_the_count_of_its_cells(
        self, tmp_path: Path, name: str
    ) -> None:
        path = write(
            tmp_path / "n.csv", f"{name},phone,day\n{ID},{A},2024-01-01\n{ID[:-1]}9,{B},2024-01-02\n,{C},\n"
        )

        phones = read(path)

        assert [phone for _, phone in phones_in(path)] == [A, B, C]
        assert left_out(phones) == {name: 2}
        assert phones.report.warnings() == [
            f"{path}: column {name} was not read, but 2 cells look like phone numbers;"
            " choose columns with --column (in forms: Columns)"
        ]

    @pytest.mark.parametrize(
        "cell",
        [
            f"{A[1:]}; {B[1:]}",
            f"{A[1:]} (work)",
            f"tel:{A[1:]}",
            f"Anna\n{A[1:]}",
            f"at night: {A}, else at work",
            "+886\N{NO-BREAK SPACE}911\N{NO-BREAK SPACE}425\N{NO-BREAK SPACE}977",
            "\N{LEFT-TO-RIGHT EMBEDDING}886-911\N{NON-BREAKING HYPHEN}425-977\N{POP DIRECTIONAL FORMATTING}",
            "８８６９１１４２５９７７",
        ],
    )
    def test_every_notation_is_counted_in_a_column_that_is_left_out(self, tmp_path: Path, cell: str) -> None:
        path = write(tmp_path / "n.csv", f'fax,phone\n"{cell}",{C}\n')

        assert left_out(read(path)) == {"fax": 1}

    def test_rows_that_a_missing_quotation_mark_hides_are_reported(self, tmp_path: Path) -> None:
        path = write(tmp_path / "n.csv", f'name,phone\n"Anna,{A[1:]}\nBerta,{B[1:]}\n"Carl,{C[1:]}\n')

        phones = read(path)

        assert phones_in(path) == [(1, C)]
        assert left_out(phones) == {"name": 1}

    def test_one_number_below_many_other_cells_of_a_column_is_reported(self, tmp_path: Path) -> None:
        rows = "".join(f"+8869112{index:05},1234567\n" for index in range(100))
        path = write(tmp_path / "n.csv", f"phone,record id\n{rows}{A},{B}\n")

        assert left_out(read(path)) == {"record id": 1}

    @pytest.mark.parametrize(
        "name",
        [
            "country_code",
            "Dial Code",
            "callingCode",
            "phone country code 1",
            "國碼",
            "prefix",
            "phone_code",
            "cc",
        ],
    )
    def test_a_country_code_in_its_own_column_is_used_and_reported(self, tmp_path: Path, name: str) -> None:
        path = write(
            tmp_path / "n.csv", f"name,{name},phone\nA,49,15112345678\nB,+886,0911425971\nC,,{B}\nD,1,{B}\n"
        )

        phones = read(path)

        assert [phone for _, phone in phones_in(path)] == ["+4915112345678", A, B, B]
        assert phones.report.warnings() == [
            f"{path}: numbers without + were read with the country code in column {name}"
        ]
        assert f"column phone, country codes in {name}, header in row 1" in phones.report.describe()
        assert phones.report.as_json()["files"][0]["code_columns"] == [name]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("prefix", "Mr"),
            ("phone_code", "4821"),
            ("country", "DE"),
            ("area code", "49"),
            ("zip code", "49"),
        ],
    )
    def test_a_column_that_may_be_anything_else_gives_no_country_code(
        self, tmp_path: Path, name: str, value: str
    ) -> None:
        path = write(tmp_path / "n.csv", f"name,{name},phone\nA,{value},{A[1:]}\n")

        assert phones_in(path) == [(1, A)]
        assert read(path).report.files[0].code_columns == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("header", "area", "number", "region"),
        [
            ("area code", "02", "2345-6789", "TW"),
            ("區碼", "(04)", "7234567", "TW"),
            ("市外局番", "03", "3123-4567", "JP"),
            ("Vorwahl", "030", "1234567", "DE"),
            ("Area Code", "202.0", "555-0123", "US"),
        ],
    )
    def test_numbers_without_the_area_codes_in_another_column_are_rejected(
        self, tmp_path: Path, header: str, area: str, number: str, region: str
    ) -> None:
        path = write(tmp_path / "n.csv", f"{header},phone\n{area},{number}\n{area},\n")

        assert rejection(path, region=region) == (
            f"{path} has the area codes of its phone numbers in another column, {header}: join the columns,"
            " or choose with --column (in forms: Columns) if the numbers are complete."
        )
        assert read(path, region=region, column="phone").given == 1
        coded = write(tmp_path / "c.csv", f"country code,{header},phone\n{region},{area},{number}\n")
        assert "has the area codes" in rejection(coded)

    @pytest.mark.parametrize(
        ("area", "number", "region"),
        [
            ("202", "202-555-0123", "US"),
            ("02", "+886223456789", None),
            ("02", "0223456789", "TW"),
            ("02", "0911425977", "TW"),
            ("02", "911425977", "TW"),
            ("02", "886223456789", "TW"),
            ("North", "0223456789", "TW"),
        ],
    )
    def test_an_area_code_beside_complete_numbers_does_not_matter(
        self, tmp_path: Path, area: str, number: str, region: str | None
    ) -> None:
        path = write(tmp_path / "n.csv", f"area code,phone\n{area},{number}\n")

        assert read(path, region=region).valid == 1

    def test_numbers_that_begin_below_the_first_rows_are_never_lost_silently(self, tmp_path: Path) -> None:
        rows = f"{A},\n" * 30_000 + f"{A},{B}\n"

        assert left_out(read(write(tmp_path / "n.csv", "phone,second\n" + rows))) == {"second": 1}
        assert left_out(
            read(write(tmp_path / "m.csv", f"phone\n{A}\n" + f"{A}\n" * 30_000 + f"{A},,{B}\n"))
        ) == {"3": 1}

    @pytest.mark.parametrize("column", ["a,c", "a, c", "1,3", "c,a", '"a",c'])
    def test_several_columns_can_be_chosen(self, tmp_path: Path, column: str) -> None:
        phones = read(write(tmp_path / "n.csv", f"a,b,c\n{A},{B},{C}\n"), column=column)

        assert phones.unique().to_pylist() == [A, C]
        assert left_out(phones) == {"b": 1}

    def test_a_column_with_a_comma_in_its_name_can_be_chosen(self, tmp_path: Path) -> None:
        path = write(tmp_path / "n.csv", f'"Phone, work",b\n{A},{B}\n')

        assert phones_in(path, column="Phone, work") == [(1, A)]
        assert phones_in(path, column='"Phone, work",b') == [(1, A), (1, B)]

    @pytest.mark.parametrize("name", ["id", "customer_id", "Contact Id", "user id", "uuid"])
    def test_an_id_column_is_never_suggested(self, tmp_path: Path, name: str) -> None:
        assert "choose one with --column (in forms: Columns)." in rejection(
            write(tmp_path / "n.csv", f"{name}\n{ID}\n")
        )
        assert "choose one with --column (in forms: Columns)." in rejection(
            write(tmp_path / "m.csv", f"{name},name\n{ID},A\n")
        )
        assert phones_in(write(tmp_path / "o.csv", f"{name},nr\n{ID},{ID[:-1]}9\n")) == [(1, f"+{ID[:-1]}9")]

    def test_ids_beside_numbers_are_left_out_also_without_a_header(self, tmp_path: Path) -> None:
        phones = read(write(tmp_path / "n.csv", f"{ID},{A}\n{ID[:-1]}9,{B}\n"))

        assert phones.unique().to_pylist() == [A, B]
        assert left_out(phones) == {"1": 2}

    def test_columns_that_may_be_ids_or_numbers_are_not_guessed(self, tmp_path: Path) -> None:
        path = write(tmp_path / "n.csv", f"a,b\n{ID},{A[1:]}\n")

        assert rejection(path) == (
            f"{path} has several columns that may contain phone numbers, a, b:"
            " choose with --column (in forms: Columns)."
        )

    def test_a_contact_column_of_names_is_not_read_beside_a_phone_column(self, tmp_path: Path) -> None:
        assert phones_in(write(tmp_path / "n.csv", f"contact,phone\nAnna,{A}\n")) == [(1, A)]
        assert phones_in(write(tmp_path / "m.csv", f"contact\n{A}\n")) == [(1, A)]

    @pytest.mark.parametrize(
        "values",
        [
            [[A, B], None],
            [{"kind": "work", "value": [{"number": int(A[1:])}]}, None],
            pa.array([[("work", A)], None], pa.map_(pa.string(), pa.string())),
        ],
    )
    def test_numbers_in_a_nested_column_of_parquet_are_counted(self, tmp_path: Path, values: Any) -> None:
        path = tmp_path / "n.parquet"
        pq.write_table(pa.table({"phone": [C, D], "others": values}), path)

        phones = read(path)

        assert phones_in(path) == [(1, C), (2, D)]
        assert left_out(phones) == {"others": 1}

    def test_parquet_has_several_columns_too(self, tmp_path: Path) -> None:
        pq.write_table(
            pa.table({"phone": [A], "fax": [D], "phone_2": [int(B)], "id": [int(ID)]}), tmp_path / "n"
        )

        phones = read(tmp_path / "n")

        assert phones.unique().to_pylist() == [A, B]
        assert left_out(phones) == {"fax": 1, "id": 1}

    @pytest.mark.parametrize(
        "header",
        [
            "Telefon privat,Mobiltelefon,Fax geschäftlich",
            "Tél. domicile,Téléphone (bureau),Télécopie (bureau)",
            "Teléfono particular,Teléfono móvil,Fax del trabajo",
            "Telefono ufficio,Cellulare,Fax ufficio",
            "Telefone residencial,Celular,Fax comercial",
            "Telefoon thuis,Mobiele telefoon,Fax op werk",
            "Telefon domowy,Telefon komórkowy,Faks służbowy",
            "Телефон домашний,Рабочий телефон,Рабочий факс",
            "Ev Telefonu,Cep Telefonu,İş Faksı",
            "Hemtelefon,Arbetstelefon,Arbetsfax",
            "自宅電話,携帯電話,会社ファックス",
            "住家電話,行動電話,公司傳真",
            "집 전화,휴대폰,직장 팩스",
            "Điện thoại nhà,Điện thoại di động,Fax cơ quan",
            "โทรศัพท์บ้าน,โทรศัพท์มือถือ,แฟกซ์ที่ทำงาน",
            "هاتف المنزل,الهاتف المحمول,فاكس العمل",
            "טלפון בבית,טלפון נייד,פקס בעבודה",
            "ＴＥＬ,Te\u0301le\u0301phone,ＦＡＸ",
            "WhatsApp Nummer,Customer Mobile Number,Account Fax",
            "Account Phone,Client Phone No,Phone Type",
        ],
    )
    @pytest.mark.parametrize("plus", ["+", ""])
    def test_columns_are_recognized_by_their_names_in_many_languages(
        self, tmp_path: Path, header: str, plus: str
    ) -> None:
        rows = f"A,{plus}{A[1:]},{plus}{B[1:]},{plus}{D[1:]},{ID}\nB,,{plus}{C[1:]},,{ID[:-1]}9\n"

        phones = read(write(tmp_path / "n.csv", f"x,{header},Kundennummer\n{rows}"))

        assert phones.unique().to_pylist() == ([A, B, D, C] if "Type" in header and plus else [A, B, C])
        assert "Kundennummer" in left_out(phones)

    @pytest.mark.parametrize(
        "name",
        [
            "Reference",
            "Konto",
            "Kundennummer",
            "Member No",
            "Postcode",
            "Loyalty card",
            "身分證",
            "Nr",
            "#",
            "",
        ],
    )
    def test_a_leading_zero_beside_a_column_of_phone_numbers_is_not_a_phone_number(
        self, tmp_path: Path, name: str
    ) -> None:
        path = write(tmp_path / "n.csv", f"phone,{name}\n0911425971,0223456789\n0911425972,0223456788\n")

        phones = read(path, region="TW")

        assert phones.unique().to_pylist() == [A, B]
        assert list(left_out(phones).values()) == [2]

    @pytest.mark.parametrize(
        "name", ["Kundennummer", "Customer No", "Case Number", "Loyalty Card", "Konto", "Tracking"]
    )
    def test_a_single_column_of_other_numbers_is_not_suggested(self, tmp_path: Path, name: str) -> None:
        assert "choose one with --column" in rejection(
            write(tmp_path / "n.csv", f"{name},name\n{ID},A\n{ID[:-1]}9,B\n")
        )


class TestHeader:
    @pytest.mark.parametrize("title", ["Phone numbers", "Contacts 2026", "Telefon", "WhatsApp", "Mobile,,"])
    def test_a_title_with_the_name_of_a_column_is_a_title(self, tmp_path: Path, title: str) -> None:
        path = write(tmp_path / "n.csv", f"{title}\n\nname,phone,phone\nA,{A},{B}\nB,{C},\n")

        phones = read(path)

        assert phones_in(path) == [(1, A), (1, B), (2, C)]
        assert phones.report.files[0].titles == 1

    @pytest.mark.parametrize("header", ["PK,phone", "ORCID,phone", "BZh,phone", "[1] name,phone"])
    def test_a_list_may_begin_with_the_letters_of_a_binary_format(self, tmp_path: Path, header: str) -> None:
        assert phones_in(write(tmp_path / "n.csv", f"{header}\n1,{A[1:]}\n")) == [(1, A)]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_the_separator_line_of_excel_is_used(self, tmp_path: Path, delimiter: str, encoding: str) -> None:
        content = f"sep={delimiter}\r\nname{delimiter}phone\r\nA, B; C{delimiter}{A}\r\n"
        if delimiter in ",;":
            content = content.replace("A, B; C", "A")

        for name in ("n.csv", "n.txt"):
            assert phones_in(write(tmp_path / name, content, encoding)) == [(1, A)]

    @pytest.mark.parametrize(
        "titles",
        [
            "Contacts export\n",
            "Contacts export\n\n",
            "Export of 2026-11-27 10:30\n\nAll customers\n",
            "\n\n",
            '"Two\nlines"\n',
        ],
    )
    @pytest.mark.parametrize("header", ["id,name,phone", "id,name,reachable at"])
    def test_titles_above_the_header_are_skipped_and_reported(
        self, tmp_path: Path, titles: str, header: str
    ) -> None:
        path = write(tmp_path / "n.csv", f"{titles}{header}\n{ID},A,{A}\n{ID},B,{B}\n{ID},C,{C}\n")

        report = read(path).report

        assert phones_in(path) == [(1, A), (2, B), (3, C)]
        assert report.files[0].columns == [header.rpartition(",")[2]]
        assert report.files[0].titles == sum(bool(line) for line in titles.replace("\nlines", "").split("\n"))
        assert report.files[0].titles == 0 or "above the header skipped" in " ".join(report.warnings())

    @pytest.mark.parametrize(
        "first", [f"A,{A} (work)", f"A,{A} work", f"1,{A}", "A,8869", "A,0911-425", "1,none", "2024-01-01,-"]
    )
    def test_a_first_row_with_digits_is_a_row_and_not_a_header(self, tmp_path: Path, first: str) -> None:
        phones = read(write(tmp_path / "n.csv", f"{first}\nB,{B}\nC,{C}\n"))

        assert phones.report.rows == 3
        assert phones.report.files[0].header_row is None
        assert phones.unique().to_pylist()[-2:] == [B, C]

    def test_a_header_with_unknown_words_is_reported(self, tmp_path: Path) -> None:
        assert "header in row 1" in read(write(tmp_path / "n.csv", f"x,y\nA,{A}\n")).report.describe()

    @pytest.mark.parametrize("name", ["n.txt", "n", "n.dat"])
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    @pytest.mark.parametrize("header", [True, False])
    def test_csv_with_another_file_name_is_recognized(
        self, tmp_path: Path, name: str, delimiter: str, header: bool
    ) -> None:
        rows = [["id", "phone"]] * header + [[ID, A], [ID, B], [ID, C]]
        content = "\n".join(delimiter.join(row) for row in rows)

        for source in (write(tmp_path / name, content), io.StringIO(content)):
            assert read_phone_list(source).unique().to_pylist() == [A, B, C]

    def test_a_single_column_with_a_known_header_is_recognized(self) -> None:
        assert read_phone_list(io.StringIO(f"Phone\n{A}\n")).given == 1

    def test_lines_with_several_numbers_stay_lines(self) -> None:
        phones = read_phone_list(io.StringIO(f"{A}, {B}\n{C}, {D}\n"))

        assert phones.unique().to_pylist() == [A, B, C, D]
        assert phones.report.describe_position(2) == "line 2 of standard input"


class TestNumbers:
    @pytest.mark.parametrize("kind", [pa.float32(), pa.float16()])
    @pytest.mark.parametrize("column", [None, "phone"])
    def test_a_column_of_short_floats_is_rejected(
        self, tmp_path: Path, kind: pa.DataType, column: str | None
    ) -> None:
        values = pa.array([886911425977.0 if kind == pa.float32() else 1000.0], pa.float64()).cast(kind)
        pq.write_table(pa.table({"name": ["A"], "phone": values}), tmp_path / "n.parquet")

        assert "not exact: export the column as text" in rejection(tmp_path / "n.parquet", column=column)

    def test_doubles_that_were_short_floats_are_rejected(self, tmp_path: Path) -> None:
        rounded = pa.array([886911425977.0, 886922425978.0], pa.float32()).cast(pa.float64())
        pq.write_table(pa.table({"phone": rounded}), tmp_path / "n.parquet")
        book = openpyxl.Workbook()
        for value in ["phone", *rounded.to_pylist()]:
            book.active.append([value])
        book.save(tmp_path / "n.xlsx")

        for name in ("n.parquet", "n.xlsx"):
            assert "not exact: export the column as text" in rejection(tmp_path / name)

    def test_doubles_are_read_if_they_are_integers(self, tmp_path: Path) -> None:
        values = pa.array([886911425971.0, None, 886911425972.5, 1e17, float("inf")])
        pq.write_table(pa.table({"phone": values}), tmp_path / "n.parquet")

        phones = read(tmp_path / "n.parquet")

        assert phones.report.describe() == "Parquet, column phone"
        assert phones.unique().to_pylist() == [A]
        assert phones.invalid == 3

    @pytest.mark.parametrize(
        "value",
        [
            12345.678,
            1711234567.5,
            -886911425971,
            -1711234567.0,
            -1421,
            Decimal("-1711234567.00"),
            Decimal("171123.25"),
        ],
    )
    @pytest.mark.parametrize("region", [None, "DE", "TW"])
    def test_typed_numbers_with_a_sign_or_decimals_are_not_phone_numbers(
        self, tmp_path: Path, value: float | Decimal, region: str | None
    ) -> None:
        pq.write_table(pa.table({"phone": pa.array([value])}), tmp_path / "n.parquet")
        write_xlsx(tmp_path / "n.xlsx", [("Leads", [["phone"], [float(value)]])])

        for name in ("n.parquet", "n.xlsx"):
            assert read(tmp_path / name, region=region).invalid == 1

    def test_a_short_float_column_that_is_not_read_does_not_matter(self, tmp_path: Path) -> None:
        pq.write_table(
            pa.table({"phone": [A], "score": pa.array([0.5], pa.float32())}), tmp_path / "n.parquet"
        )

        assert phones_in(tmp_path / "n.parquet") == [(1, A)]


class TestEncodings:
    @pytest.mark.parametrize(
        ("content", "encoding"),
        [
            (f"姓名,電話\n王,{A}\n", "cp950"),
            (f"姓名,電話\n王,{A}\n", "big5"),
            (f"姓名,電話\n王,{A}\n", "gbk"),
            (f"姓名,电话\n王,{A}\n", "gbk"),
            (f"名前,携帯電話\n王,{A}\n", "cp932"),
            (f"이름,전화번호\n왕,{A}\n", "cp949"),
            (f"Prénom,Téléphone\nÉmile,{A}\n", "cp1252"),
            (f"Straße,Telefon\nGrün,{A}\n", "cp1252"),
        ],
    )
    @pytest.mark.parametrize("named", [True, False])
    def test_the_encodings_of_excel_are_recognized_by_the_header(
        self, tmp_path: Path, content: str, encoding: str, named: bool
    ) -> None:
        path = write(tmp_path / ("n.csv" if named else "n"), content, encoding)

        phones = read(path)

        assert phones_in(path) == [(1, A)]
        assert phones.report.files[0].columns == [content.partition("\n")[0].partition(",")[2]]
        assert phones.report.files[0].encoding == {"big5": "cp950"}.get(encoding, encoding)

    @pytest.mark.parametrize("encoding", ["cp950", "gbk", "cp932", "cp949", "cp1252", "utf-8"])
    @pytest.mark.parametrize("head", ["", f"B,{B}\n" * 20_000])
    def test_names_in_any_encoding_change_no_number(self, tmp_path: Path, encoding: str, head: str) -> None:
        letters = "éüß" if encoding == "cp1252" else "王" if encoding != "cp949" else "왕"
        path = write(tmp_path / "n.csv", f"name,phone\n{head}{letters},{A}\n".encode(encoding))

        phones = read(path)

        assert phones.unique().to_pylist()[-1] == A
        assert phones.invalid == 0

    def test_numbers_in_full_width_digits_are_read_in_their_encoding(self, tmp_path: Path) -> None:
        for encoding in ("cp950", "gbk", "cp932"):
            path = write(tmp_path / "n.csv", "電話\n＋８８６９１１４２５９７１\n", encoding)
            assert phones_in(path) == [(1, A)]


def workbook(path: Path, *sheets: tuple[str, list[list[Any]]]) -> Path:
    """Write a spreadsheet in the format of the file name."""
    {".xlsx": write_xlsx, ".xls": write_xls, ".ods": write_ods}[path.suffix](path, sheets)
    return path


def test_errors_and_formulas_without_a_value_are_reported_as_rows_without_a_number(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for value in ("phone", "#N/A", '="+886"&"911425977"', A):
        book.active.append([value])
    book.save(tmp_path / "n.xlsx")

    phones = read_phone_list(str(tmp_path / "n.xlsx"))

    assert [str(one) for one in phones.table.column("phone").to_pylist()] == [A]
    assert [
        line.partition(";")[0].rpartition("/")[2] for line in phones.report.warnings() if "no number" in line
    ] == ["n.xlsx: 2 rows have no number in these columns"]


def write_xlsx(path: Path, sheets: Iterable[tuple[str, list[list[Any]]]]) -> None:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets:
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)


def write_xls(path: Path, sheets: Iterable[tuple[str, list[list[Any]]]]) -> None:
    book = xlwt.Workbook()
    for name, rows in sheets:
        sheet = book.add_sheet(name)
        for index, row in enumerate(rows):
            for position, value in enumerate(row):
                sheet.write(index, position, value)
    book.save(str(path))


def write_ods(path: Path, sheets: Iterable[tuple[str, list[list[Any]]]]) -> None:
    document = opendocument.OpenDocumentSpreadsheet()
    for name, rows in sheets:
        grid = table.Table(name=name)
        for row in rows:
            line = table.TableRow()
            for value in row:
                typed = (
                    {"valuetype": "string"}
                    if isinstance(value, str)
                    else {"valuetype": "float", "value": value}
                )
                cell = table.TableCell(**typed)
                cell.addElement(odf_text.P(text=str(value)))
                line.addElement(cell)
            grid.addElement(line)
        document.spreadsheet.addElement(grid)
    document.save(str(path))


def test_a_number_that_a_spreadsheet_shows_as_a_date_is_not_the_digits_of_that_date(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for value in ("phone", 911425, A):
        sheet.append([value])
    sheet["A2"].number_format = "yyyy-mm-dd"  # 4395-05-23
    book.save(tmp_path / "n.xlsx")

    assert read(tmp_path / "n.xlsx", region="DE").table["phone"].to_pylist() == [None, A]


@pytest.mark.parametrize("state", ["hidden", "veryHidden"])
def test_the_first_sheet_is_the_first_visible_sheet(tmp_path: Path, state: str) -> None:
    book = openpyxl.Workbook()
    book.active.append(["phone"])
    book.active.append([D])
    book.active.sheet_state = state
    book.create_chartsheet("Chart")
    shown = book.create_sheet("Leads")
    for value in ("phone", A):
        shown.append([value])
    book.active = 2
    book.save(tmp_path / "n.xlsx")

    phones = read(tmp_path / "n.xlsx")

    assert phones.unique().to_pylist() == [A]
    assert "only sheet Leads was read, not Sheet, Chart" in " ".join(phones.report.warnings())
    assert phones_in(tmp_path / "n.xlsx", sheet="1") == [(1, D)]


@pytest.mark.parametrize("suffix", [".xlsx", ".xls", ".ods"])
class TestSpreadsheets:
    ROWS = (
        ["Contacts export"],
        ["id", "name", "phone", "phone_2"],
        [int(ID), "A", int(A[1:]), B],
        [1, "B", C, ""],
    )

    def test_the_first_sheet_is_read_and_the_others_are_reported(self, tmp_path: Path, suffix: str) -> None:
        path = workbook(tmp_path / f"n{suffix}", ("Leads", list(self.ROWS)), ("Old", [["phone"], [D]]))

        phones = read(path)

        assert phones_in(path) == [(1, A), (1, B), (2, C)]
        assert left_out(phones) == {"id": 1}
        assert phones.report.files[0].sheet == "Leads"
        choice = "choose with --sheet (in forms: Sheet)"
        assert f"{path}: only sheet Leads was read, not Old; {choice}" in phones.report.warnings()
        assert suffix[1:] in phones.report.describe()

    @pytest.mark.parametrize("sheet", ["Old", "old ", "2"])
    def test_a_sheet_can_be_chosen_by_name_or_number(self, tmp_path: Path, suffix: str, sheet: str) -> None:
        path = workbook(tmp_path / f"n{suffix}", ("Leads", list(self.ROWS)), ("Old", [["phone"], [D]]))

        assert phones_in(path, sheet=sheet) == [(1, D)]
        assert rejection(path, sheet="3") == f"{path} has no sheet '3', only Leads, Old."

    def test_the_error_of_an_empty_first_sheet_names_the_others(self, tmp_path: Path, suffix: str) -> None:
        path = workbook(tmp_path / f"n{suffix}", ("Cover", [["About"]]), ("Leads", list(self.ROWS)))

        assert rejection(path).endswith(
            "give at least one, or choose another sheet with --sheet (in forms: Sheet): Leads."
        )

    def test_dates_in_a_column_of_numbers_are_not_numbers(self, tmp_path: Path, suffix: str) -> None:
        day = "2024-01-02" if suffix == ".ods" else datetime.date(2024, 1, 2)
        path = workbook(tmp_path / f"n{suffix}", ("Leads", [["name", "phone"], ["A", day], ["B", A]]))

        assert read(path, region="TW").table["phone"].to_pylist() == [None, A]

    def test_a_spreadsheet_is_recognized_with_any_file_name_and_from_a_stream(
        self, tmp_path: Path, suffix: str
    ) -> None:
        body = workbook(tmp_path / f"n{suffix}", ("Leads", list(self.ROWS))).read_bytes()

        assert phones_in(write(tmp_path / "list.csv", body))[0] == (1, A)
        assert read_phone_list(io.TextIOWrapper(io.BytesIO(body))).unique().to_pylist() == [A, B, C]

    def test_ids_are_read_from_spreadsheets_too(self, tmp_path: Path, suffix: str) -> None:
        path = workbook(
            tmp_path / f"n{suffix}", ("S", [["n", "conversation_id"], [1, "conv_2"], [2, "conv_1"]])
        )

        assert read_ids(str(path)).ids == ["conv_2", "conv_1"]


def archive(**members: str) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/"), content)
    return body.getvalue()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"<html><head><title>Sign in</title>", "an HTML page"),
        (b"\xef\xbb\xbf\r\n<!DOCTYPE html><p>", "an HTML page"),
        (b"<table><tr><td>phone</td></tr>", "an HTML page"),
        ("<html>".encode("utf-16"), "an HTML page"),
        (b'<?xml version="1.0"?><Workbook/>', "XML"),
        (b"<Error><Code>AccessDenied</Code></Error>", "XML"),
        (f'[{{"phone": "{A}"}}]'.encode(), "JSON"),
        (f'["{A}"]'.encode(), "JSON"),
        (b'{\n  "phones": []}', "JSON"),
        (f'{{"phone": "{A}"}}\n{{"phone": "{B}"}}\n'.encode(), "JSON"),
        (f"BEGIN:VCARD\r\nTEL:{A}\r\nEND:VCARD\r\n".encode(), "vCard"),
        (bz2.compress(A.encode()), "bzip2"),
        (b"\xfd7zXZ\0...", "xz archive"),
        (b"7z\xbc\xaf\x27\x1c...", "7-Zip"),
        (b"Rar!\x1a\x07\x00", "RAR"),
        (archive(a="x"), "zip archive"),
        (archive(word__document="x", mimetype="application/vnd.oasis.opendocument.text"), "a document"),
        (b"PK\x05\x06" + bytes(18), "zip archive"),
        (b"%PDF-1.7", "PDF"),
        (b"\x89PNG\r\n", "an image"),
        (b"SQLite format 3\0", "SQLite"),
        (b"Obj\x01", "Avro"),
        (b"ORC\x08", "ORC"),
        (b"ARROW1\0\0", "Arrow"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "not a spreadsheet"),
        (b"8\x008\x006\x009\x00", "not text"),
    ],
)
@pytest.mark.parametrize("name", ["n.csv", "n.xls", "n.txt", "n", "n.parquet"])
def test_a_file_that_is_not_a_list_is_reported_with_its_format(
    tmp_path: Path, content: bytes, named: str, name: str
) -> None:
    if name == "n.parquet" and (content[0] == 0xFF or named in ("not a spreadsheet", "a document")):
        pytest.skip("its format follows from its name")
    sentence = rejection(write(tmp_path / name, content))

    assert named in sentence
    assert A not in sentence


class TestFolders:
    @pytest.mark.parametrize("slash", ["", "/"])
    @pytest.mark.parametrize("position", ["local", "memory"])
    def test_a_folder_is_one_list(self, tmp_path: Path, slash: str, position: str) -> None:
        root = str(tmp_path / "lists")
        files = {
            "b.csv": f"id,phone\n1,{B}\n2,x\n",
            "a.txt": f"{A}\n\n",
            "sub/c.csv": f"phone\n{A}\n",
            "_SUCCESS": "",
            ".crc": "x",
        }
        for name, content in files.items():
            write(tmp_path / "lists" / name, content)
        if position == "memory":
            root = f"memory://{tmp_path.name}/lists"
            for name, content in files.items():
                fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/lists/{name}", content.encode())

        phones = read(root + slash)

        assert phones.unique().to_pylist() == [A, B]
        assert [
            phones.report.describe_position(position) for position in phones.table["position"].to_pylist()
        ] == [
            "line 1 of a.txt",
            "data row 1 of b.csv",
            "data row 2 of b.csv",
            "data row 1 of c.csv",
        ]
        assert (phones.report.rows, len(phones.report.files), phones.duplicates) == (5, 3, 1)
        assert len(phones.report.skipped_files) == 2
        assert phones.report.warnings()[-1].endswith(": 2 hidden or empty files were not read")

    @pytest.mark.parametrize("pattern", ["", "*"])
    def test_a_link_to_nothing_or_to_a_folder_is_not_left_out(self, tmp_path: Path, pattern: str) -> None:
        folder = tmp_path / "lists"
        write(folder / "a.txt", f"{A}\n")
        write(tmp_path / "others" / "b.txt", f"{B}\n")
        # As Kubernetes mounts files: hidden folders, and links to their files.
        (folder / "..data").symlink_to(tmp_path / "others")
        (folder / "b.txt").symlink_to("..data/b.txt")
        assert phones_in(str(folder / pattern)) == [(1, A), (2, B)]

        link = folder / "march"
        link.symlink_to(tmp_path / ("none" if pattern else "others"))

        assert rejection(str(folder / pattern)).startswith(
            f"{link} is not a file, but a pipe, or a link to a"
        )

    def test_one_file_that_is_skipped_is_reported_in_the_singular(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt", A)
        write(tmp_path / ".b.txt", B)

        assert read(tmp_path).report.warnings() == [f"{tmp_path.name}: 1 hidden or empty file was not read"]

    @pytest.mark.parametrize(
        ("pattern", "found"),
        [("*.csv", [B]), ("?.txt", [A]), ("[ab].*", [A, B]), ("*", [A, B]), ("**/*.csv", [B, C])],
    )
    def test_a_pattern_is_one_list(self, tmp_path: Path, pattern: str, found: list[str]) -> None:
        for name, phone in {"b.csv": B, "a.txt": A, "sub/c.csv": C}.items():
            write(tmp_path / name, f"{phone}\n")
            fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{name}", f"{phone}\n".encode())

        assert read(f"{tmp_path}/{pattern}").unique().to_pylist() == found
        assert read(f"memory://{tmp_path.name}/{pattern}").unique().to_pylist() == found

    def test_a_file_wins_over_a_pattern(self, tmp_path: Path) -> None:
        assert phones_in(write(tmp_path / "list[1].txt", A)) == [(1, A)]

    def test_a_folder_or_pattern_without_a_list_is_rejected(self, tmp_path: Path) -> None:
        assert rejection(tmp_path) == f"{tmp_path} has no file with a list: check the address."
        assert "no file with a list" in rejection(f"{tmp_path}/*.csv")

    def test_a_file_in_a_folder_that_is_not_a_list_is_reported(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt", A)
        write(tmp_path / "b.pdf", b"%PDF")

        assert rejection(tmp_path) == f"{tmp_path}/b.pdf is a PDF, not a list: save the list as CSV (UTF-8)."


class TestAddresses:
    @pytest.mark.parametrize(
        "address",
        [
            "tar://list.csv::file:///tmp/a.tar",
            "zip://list.csv::s3://bucket/a.zip",
            "simplecache::s3://bucket/list.csv",
            "filecache::http://169.254.169.254/latest/meta-data",
            "reference://list.csv",
            "jupyter://host/list.csv",
            "http://169.254.169.254/latest/meta-data",
            "https://example.org/list.csv",
            "ftp://host/list.csv",
            "sftp://host/list.csv",
            "github://owner:repo@main/list.csv",
            "git://list.csv",
            "data://text/plain,1",
            "dask://list.csv",
            "HTTP://169.254.169.254/",
            "dir://x",
        ],
    )
    @pytest.mark.parametrize("read_list", [read, lambda address: read_ids(address)], ids=["phones", "ids"])
    def test_an_address_of_another_kind_is_rejected_before_anything_is_fetched(
        self, address: str, read_list: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fsspec.core.url_to_fs", lambda *_: pytest.fail("a driver was called"))

        with pytest.raises(UsageError, match=r"is not supported|is not allowed"):
            read_list(address)

    def test_the_settings_can_allow_another_kind_but_no_chain(self) -> None:
        assert "package for this kind of address is not installed" in rejection(
            "gs://b/n.csv", schemes={"gs"}
        )
        with pytest.raises(UsageError, match="chain"):
            read("tar://a::gs://bucket/a.tar", schemes={"tar", "gs"})


class TestReport:
    def test_the_report_has_choices_and_skipped_cells_with_positions_and_without_numbers(
        self, tmp_path: Path
    ) -> None:
        rows = [f"1,{A}", "2,Anna", f"3,{ID[:4]}", "4,", f"5,{B} / {A}", "6,Berta"]
        path = write(tmp_path / "n.csv", "Export\nid;phone\n".replace(";", ",") + "\n".join(rows) + "\n")

        report = read(path).report.as_json()

        assert json.loads(json.dumps(report)) == report
        assert report["rows"] == 6
        assert report["numbers"] == {"given": 6, "valid": 2, "duplicate": 1, "invalid": 3}
        file = report["files"][0]
        assert (file["header_row"], file["columns"], file["encoding"], file["titles_skipped"]) == (
            2,
            ["phone"],
            "utf-8",
            1,
        )
        assert file["rows_without_text"] == {"count": 1, "positions": [4]}
        assert report["rejected"] == [
            {"reason": "it has letters", "count": 2, "where": ["data row 2 of n.csv", "data row 6 of n.csv"]},
            {"reason": "it lacks its area code", "count": 1, "where": ["data row 3 of n.csv"]},
        ]
        assert not any(number[-6:] in json.dumps(report) for number in (A, B, ID))

    @pytest.mark.slow
    def test_the_size_of_the_report_is_bounded(self, tmp_path: Path) -> None:
        for index in range(60):
            write(
                tmp_path / f"{index}.csv",
                "phone," + ",".join(f"c{position}" for position in range(60)) + "\n" + "x,\n" * 500,
            )

        report = read(tmp_path).report.as_json()

        assert len(json.dumps(report)) < 30_000
        assert report["file_count"] == 60
        assert report["rejected"][0]["count"] == 30_000
        assert len(report["rejected"][0]["where"]) == MAX_POSITIONS

    @pytest.mark.parametrize(
        ("numbers", "count"),
        [
            (["886911000000", "886912000000", A], 2),
            (["886911400000.0", "886912500000.0"], 2),  # 32-bit floats, as pandas writes them
            (["+886223400000", A, B], 0),
            ([A, B], 0),
        ],
    )
    def test_numbers_that_a_spreadsheet_may_have_rounded_are_reported(
        self, tmp_path: Path, numbers: list[str], count: int
    ) -> None:
        warnings = read(write(tmp_path / "n.txt", "\n".join(numbers))).report.warnings()

        reported = f"n.txt: {count} numbers end in five zeros; if a spreadsheet or a program has rounded them"
        assert [one.partition(",")[0] for one in warnings] == [reported] * bool(count)

    def test_the_columns_that_are_not_named_are_counted(self, tmp_path: Path) -> None:
        names = [f"phone_{index}" for index in range(23)]
        path = write(tmp_path / "n.csv", f"{','.join(names)}\n{','.join([A] * 23)}\n")

        assert f"columns {', '.join(names[:20])} and 3 more, header" in read(path).report.describe()

    def test_a_column_that_is_left_out_of_the_last_of_many_files_is_reported(self, tmp_path: Path) -> None:
        for index in range(30):
            write(tmp_path / f"{index:02}.csv", f"# March\nfax,phone\n,{A}\n")
        write(tmp_path / "30.csv", f"fax,phone\n{B},{A}\n")

        warnings = read(tmp_path).report.warnings()

        assert len(warnings) == 20
        assert warnings[0].startswith(f"{tmp_path / '30.csv'}: column fax was not read, but 1 cell looks")
        assert warnings[-1] == f"{tmp_path.name}: 12 remarks like these are not shown"

    def test_comments_and_blank_lines_of_text_are_counted(self, tmp_path: Path) -> None:
        file = read(write(tmp_path / "n.txt", f"# ours\n\n{A}\n")).report.files[0]

        assert (file.comments, file.empty.count, file.rows) == (1, 1, 3)


class WebServer(BaseHTTPRequestHandler):
    """Sends the list of its path as a web server does that states no length, a wrong one, or an error."""

    def do_HEAD(self) -> None:
        self.respond(b"")

    def do_GET(self) -> None:
        self.respond(f"phone\n{A}\n".encode())

    def respond(self, body: bytes) -> None:
        self.send_response(500 if "fails" in self.path else 200)
        if "cut" in self.path:
            self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), WebServer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_list_of_a_web_server_that_states_no_length_is_read(web: str) -> None:
    assert phones_in(f"{web}/n.csv", schemes=["http"]) == [(1, A)]


@pytest.mark.parametrize(
    ("name", "reported"),
    [("cut.csv", "its server sent only a part of it"), ("fails.csv", "its server answers with an error")],
)
def test_an_error_of_a_web_server_becomes_one_sentence(web: str, name: str, reported: str) -> None:
    assert rejection(f"{web}/{name}", schemes=["http"]) == f"{web}/{name} cannot be read: {reported}."


def test_a_folder_and_a_pattern_in_a_bucket_are_one_list(
    s3: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    bucket = f"lists-{uuid4().hex[:8]}"
    s3.create_bucket(bucket)
    parquet = io.BytesIO()
    pq.write_table(pa.table({"phone": [A, B], "phone_2": [C, None]}), parquet)

    def put(key: str, body: bytes) -> None:
        s3.client().put_object(Bucket=bucket, Key=key, Body=body)

    put("lists/", b"")
    put("lists/_SUCCESS", b"")
    put("lists/a.parquet", parquet.getvalue())
    assert read(f"s3://{bucket}/lists/").unique().to_pylist() == [A, C, B]
    put("lists/b.txt", D.encode())
    assert read(f"s3://{bucket}/lists/").unique().to_pylist() == [A, C, B, D]
    assert read(f"s3://{bucket}/lists").unique().to_pylist() == [A, C, B, D]
    assert read(f"s3://{bucket}/lists/*.parquet").unique().to_pylist() == [A, C, B]
    assert read(f"s3://{bucket}/lists/b.txt").unique().to_pylist() == [D]
    assert "does not exist" in rejection(f"s3://{bucket}/nothing.csv")
    assert "no file with a list" in rejection(f"s3://{bucket}/nothing/")
    S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", '"http://127.0.0.1:1"')
    assert "AWS_ENDPOINT_URL" in rejection(f"s3://{bucket}/lists/c.txt")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("n.xls", b"MIME-Version: 1.0\r\nContent-Type: multipart/related\r\n\r\n<html>", "an HTML page"),
        ("n.xls", b"<tr><td>1</td></tr>", "an HTML page"),
        ("n.csv", b"\r\n%PDF-1.7\n", "a PDF"),
        ("n.json", b"[null, 1]", "JSON"),
        ("n.json", b"[ -1.5e3\n]", "JSON"),
        ("n.json", b"[true]", "JSON"),
        ("n.gz", gzip.compress(gzip.compress(b"1", mtime=0), mtime=0), "a gzip archive within another"),
        ("n.parquet.gz", gzip.compress(b"PAR1" + bytes(40), mtime=0), "Parquet in a stream or archive"),
    ],
)
def test_more_files_that_are_not_lists_are_reported_with_their_format(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    assert f"{name} is {kind}" in rejection(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("member", "kind"),
    [
        ("ppt/presentation.xml", "a document"),
        ("word/doc2.xml", "a document"),
        ("Index/Tables.iwa", "an Apple Numbers"),
    ],
)
def test_documents_in_zip_archives_are_reported_with_their_format(
    tmp_path: Path, member: str, kind: str
) -> None:
    with zipfile.ZipFile(tmp_path / "n.xlsx", "w") as archive:
        archive.writestr(member, "x")

    assert kind in rejection(tmp_path / "n.xlsx")


def test_a_chat_export_is_not_reported_as_json(tmp_path: Path) -> None:
    path = write(tmp_path / "n.txt", f"[27.11.26, 10:30:01] Anna: hi\n[27.11.26, 10:30:02] {A}: hello\n")

    assert "JSON" not in rejection(path)
