"""Lists of phone numbers: sources, columns, errors with their positions, and little memory."""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from random import Random

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from hypothesis import given
from hypothesis import strategies as st

from imbrace_lake.errors import InputError, InvalidPhoneNumber, UsageError
from imbrace_lake.phones.lists import PhoneList, Source, iter_numbers, read_ids, read_phone_list
from imbrace_lake.phones.numbers import parse_phone

A, B, C = "+886911425977", "+886922425978", "+12025550123"
BARE_A, BARE_B, BARE_C = A[1:], B[1:], C[1:]


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def write_parquet(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def given_in(source: Source, column: str | None = None) -> list[tuple[int, str]]:
    return [*iter_numbers(source, column=column)]


def rejection(source: Source, column: str | None = None) -> str:
    with pytest.raises((InputError, UsageError)) as caught:
        read_phone_list(source, column=column)
    # A cause would print the store's message, which can contain a signed URL.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


class TestPhoneList:
    def test_each_input_number_is_one_row_with_its_status(self) -> None:
        phones = read_phone_list([BARE_A, "Anna Kowalska", "+886 911-425-977", C, ""])

        assert phones.table.drop_columns("reason").to_pydict() == {
            "position": [1, 2, 3, 4, 5],
            "entry": [1, 1, 1, 1, 1],
            "status": ["ok", "invalid", "duplicate", "ok", "invalid"],
            "phone": [A, None, A, C, None],
            "duplicate_of": [None, None, 1, None, None],
        }
        assert phones.unique().to_pylist() == [A, C]
        assert (phones.given, phones.valid, phones.duplicates, phones.invalid) == (5, 2, 1, 2)

    def test_an_invalid_number_is_reported_with_its_position_and_without_its_content(
        self, tmp_path: Path
    ) -> None:
        path = write(tmp_path / "numbers.txt", f"# ours\n{BARE_A}\n\nAnna Kowalska\n")

        phones = read_phone_list(path)

        assert list(phones.problems()) == [
            "line 4 of numbers.txt: <text of length 13 with 0 digits> is not a phone number: it has letters."
        ]
        assert phones.valid == 1

    def test_positions_are_described_in_the_words_of_the_source(self, tmp_path: Path) -> None:
        table = write(tmp_path / "numbers.csv", f"phone\n{BARE_A}\n")

        assert read_phone_list(["x"]).report.describe_position(1) == "number 1 of the arguments"
        assert read_phone_list(io.StringIO("x")).report.describe_position(1) == "line 1 of standard input"
        assert read_phone_list(table).report.describe_position(1) == "data row 1 of numbers.csv"
        assert (
            read_phone_list(["x"], source_name="--phone").report.describe_position(3) == "number 3 of --phone"
        )

    def test_no_representation_shows_a_number(self) -> None:
        phones = read_phone_list([BARE_A, "Anna"])

        assert repr(phones) == "PhoneList('the arguments': given=2, valid=1, duplicates=0, invalid=1)"

    def test_a_region_is_used_for_every_number_and_checked_first(self) -> None:
        assert read_phone_list(["0911425977"], region="tw").unique().to_pylist() == [A]
        with pytest.raises(UsageError, match="There is no region 'XX'"):
            read_phone_list(["0911425977"], region="XX")

    def test_a_list_of_invalid_numbers_is_not_an_error_and_has_no_phones(self) -> None:
        phones = read_phone_list(["Anna", "Berta"])

        assert phones.unique().to_pylist() == []
        assert phones.unique().type == pa.string()

    @pytest.mark.parametrize("content", ["", "\n\n", "# nothing\n"])
    def test_a_list_without_any_number_is_rejected(self, tmp_path: Path, content: str) -> None:
        assert (
            rejection(write(tmp_path / "n.txt", content))
            == "n.txt contains no phone number: give at least one."
        )
        assert "no phone number" in rejection(write(tmp_path / "n.csv", content))
        assert "no phone number" in rejection([])

    @pytest.mark.slow
    @given(st.lists(st.sampled_from([A, BARE_A, B, f" {B[:4]}-{B[4:]}", C, "Anna", "12"]), min_size=1))
    def test_statuses_equal_those_of_a_plain_dictionary(self, texts: list[str]) -> None:
        first: dict[str, int] = {}
        expected: list[tuple[str, int | None]] = []
        for position, text in enumerate(texts, 1):
            try:
                earlier = first.setdefault(parse_phone(text), position)
            except InvalidPhoneNumber:
                expected.append(("invalid", None))
            else:
                expected.append(("ok", None) if earlier == position else ("duplicate", earlier))

        phones = read_phone_list(texts)

        rows = phones.table.select(["status", "duplicate_of"]).to_pylist()
        assert [(row["status"], row["duplicate_of"]) for row in rows] == expected
        assert phones.unique().to_pylist() == list(first)

    def test_duplicates_are_found_across_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("imbrace_lake.phones.lists._BATCH_ROWS", 2)

        phones = read_phone_list(["Anna", A, B, "Berta", "Cleo", B, A, C])

        assert phones.table["duplicate_of"].to_pylist() == [None] * 5 + [3, 2, None]
        assert len(list(phones.problems())) == 3
        assert all("letters" in problem for problem in phones.problems())

    def test_a_number_takes_less_than_50_bytes(self) -> None:
        phones = read_phone_list(f"8869{number % 20_000:08d}" for number in range(40_000))

        assert (phones.valid, phones.duplicates) == (20_000, 20_000)
        assert phones.table.nbytes / phones.given < 50


class TestText:
    LINES = f"# our customers\r\n{BARE_A}\r\n\r\n  {BARE_B}\t\r\n"
    EXPECTED = ((2, BARE_A), (4, BARE_B))

    @pytest.mark.parametrize(
        "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "ascii", "cp950", "gbk", "cp932", "cp1252"]
    )
    def test_line_ends_comments_blank_lines_and_encodings_do_not_matter(
        self, tmp_path: Path, encoding: str
    ) -> None:
        path = write(tmp_path / "numbers.txt", self.LINES, encoding)

        assert given_in(path) == [*self.EXPECTED]

    @pytest.mark.parametrize("mark", ["utf-16-le", "utf-16-be"])
    def test_byte_order_marks_of_utf_16_are_used(self, tmp_path: Path, mark: str) -> None:
        path = write(tmp_path / "numbers", ("\ufeff" + self.LINES).encode(mark))

        assert given_in(path) == [*self.EXPECTED]

    @pytest.mark.parametrize("pack", [gzip.compress, zstd])
    @pytest.mark.parametrize("name", ["numbers.txt.gz", "numbers.zst", "wrongly-named.txt"])
    def test_compressed_text_is_recognized_by_its_content(
        self, tmp_path: Path, pack: Callable[[bytes], bytes], name: str
    ) -> None:
        assert given_in(write(tmp_path / name, pack(self.LINES.encode()))) == [*self.EXPECTED]

    def test_streams_of_text_and_of_bytes_are_read(self) -> None:
        packed = io.TextIOWrapper(io.BytesIO(gzip.compress(self.LINES.encode())))

        assert given_in(io.StringIO(self.LINES)) == [*self.EXPECTED]
        assert given_in(io.TextIOWrapper(io.BytesIO(self.LINES.encode("utf-16")))) == [*self.EXPECTED]
        assert given_in(packed) == [*self.EXPECTED]

    def test_paths_urls_and_the_home_directory_are_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path / "numbers.txt", self.LINES)
        monkeypatch.setenv("HOME", str(tmp_path))
        fsspec.filesystem("memory").pipe("/lists/numbers.txt", self.LINES.encode())

        for source in (path, str(path), path.as_uri(), "~/numbers.txt", "memory://lists/numbers.txt"):
            assert given_in(source) == [*self.EXPECTED]

    def test_a_list_longer_than_every_buffer_is_read_to_its_end(self, tmp_path: Path) -> None:
        lines = "".join(f"8869{number:08d}\n" for number in range(100_000))
        path = write(tmp_path / "numbers.gz", gzip.compress(lines.encode(), compresslevel=1))

        *_, last = iter_numbers(path)

        assert last == (100_000, "886900099999")

    def test_arguments_are_not_parsed_as_text(self) -> None:
        assert given_in([BARE_A, "", "# x"]) == [(1, BARE_A), (2, ""), (3, "# x")]


class TestCsv:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
    def test_delimiter_and_encoding_are_recognized(
        self, tmp_path: Path, delimiter: str, encoding: str
    ) -> None:
        rows = [["姓名", "手機號碼"], ['"陳; Ms, Anna"', BARE_A], ["b", BARE_B]]
        content = "\r\n".join(delimiter.join(row) for row in rows)

        assert given_in(write(tmp_path / "n.csv", content, encoding)) == [(1, BARE_A), (2, BARE_B)]

    @pytest.mark.parametrize(
        "header",
        [
            "phone",
            "Phone Number",
            "PHONE_NO",
            "Mobile",
            "msisdn",
            "WhatsApp",
            "tel.",
            "Telefon",
            "Téléphone",
            "número de teléfono",
            "電話",
            "手机号码",
            "電話番号",
            "전화번호",
            "номер телефона",
            "رقم الهاتف",
            "wa_id",
        ],
    )
    def test_a_column_with_a_usual_name_is_found_whatever_the_others_contain(
        self, tmp_path: Path, header: str
    ) -> None:
        path = write(tmp_path / "n.csv", f"fax,{header},id\n{BARE_C},{BARE_A},{BARE_B}\n")

        assert given_in(path) == [(1, BARE_A)]

    def test_the_only_column_is_taken_with_and_without_a_header(self, tmp_path: Path) -> None:
        assert given_in(write(tmp_path / "a.csv", f"anything\n{BARE_A}\nAnna\n")) == [
            (1, BARE_A),
            (2, "Anna"),
        ]
        assert given_in(write(tmp_path / "b.csv", f"{BARE_A}\n8.86911E+11\n")) == [
            (1, BARE_A),
            (2, "8.86911E+11"),
        ]
        assert given_in(write(tmp_path / "c.csv", f"8.86911E+11\n{BARE_A}\n"))[0] == (1, "8.86911E+11")

    def test_without_a_usual_name_the_only_column_of_mostly_phone_numbers_is_taken(
        self, tmp_path: Path
    ) -> None:
        rows = f"1,Anna,{BARE_A},2024-01-01\n2,Berta,none,2024-01-02\n3,Cleo,{BARE_B},2024-01-03\n"
        expected = [(1, BARE_A), (2, "none"), (3, BARE_B)]

        assert given_in(write(tmp_path / "a.csv", "id,name,contacted,since\n" + rows)) == expected
        assert given_in(write(tmp_path / "b.csv", rows)) == expected

    def test_a_column_of_numbers_without_country_codes_is_found(self, tmp_path: Path) -> None:
        assert given_in(write(tmp_path / "a.csv", "a,b\n1,0911425977\n")) == [(1, "0911425977")]

    @pytest.mark.parametrize("column", ["home", "HOME ", "2"])
    def test_a_column_can_be_chosen_by_name_or_number(self, tmp_path: Path, column: str) -> None:
        path = write(tmp_path / "n.csv", f"phone,home\n{BARE_A},{BARE_B}\n")

        assert given_in(path, column) == [(1, BARE_B)]

    def test_a_name_wins_over_a_number(self, tmp_path: Path) -> None:
        assert given_in(write(tmp_path / "n.csv", f"2,x\n{BARE_A},{BARE_B}\n"), "2") == [(1, BARE_A)]

    def test_with_a_column_text_and_standard_input_are_read_as_tables(self, tmp_path: Path) -> None:
        content = f"a,b\nx,{BARE_A}\n"

        assert given_in(write(tmp_path / "n.txt", content), "b") == [(1, BARE_A)]
        assert given_in(io.StringIO(content), "b") == [(1, BARE_A)]

    def test_positions_count_blank_rows_and_empty_cells(self, tmp_path: Path) -> None:
        path = write(tmp_path / "n.csv", f'\n\nname,phone\n"An\nna",{BARE_A}\n\nx\ny,\nz,{BARE_B},more\n')

        assert given_in(path) == [(1, BARE_A), (5, BARE_B)]
        assert given_in(write(tmp_path / "m.csv", f"\n{BARE_A},x\n\n{BARE_B},y\n")) == [
            (2, BARE_A),
            (4, BARE_B),
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize("blank", ["\n", ",\n", "8.86911E+11\n"])
    def test_short_and_blank_rows_do_not_hide_later_numbers(self, tmp_path: Path, blank: str) -> None:
        rows = blank * 3 + f"Anna,{BARE_A}\n" + blank * 70_000 + f"Berta,{BARE_B}\n"

        assert given_in(write(tmp_path / "n.csv", rows), "2") == [(4, BARE_A), (70_005, BARE_B)]

    def test_an_extra_field_does_not_become_an_index(self, tmp_path: Path) -> None:
        assert given_in(write(tmp_path / "n.csv", f"phone,name\n{BARE_A},x,\n{BARE_B},y,\n")) == [
            (1, BARE_A),
            (2, BARE_B),
        ]

    def test_text_that_looks_like_a_missing_value_is_reported(self, tmp_path: Path) -> None:
        assert given_in(write(tmp_path / "n.csv", f"phone\nNA\n{BARE_A}\n")) == [(1, "NA"), (2, BARE_A)]

    @pytest.mark.slow
    @pytest.mark.parametrize("pack", [gzip.compress, zstd])
    def test_a_long_compressed_table_is_read_to_its_end(
        self, tmp_path: Path, pack: Callable[[bytes], bytes]
    ) -> None:
        content = "id,phone\n" + "".join(f"{number},8869{number:08d}\n" for number in range(70_000))

        *_, last = given_in(write(tmp_path / "n.csv.gz", pack(content.encode())))

        assert last == (70_000, "886900069999")

    @pytest.mark.parametrize("content", ["phone", "phone\n", "id,phone\r\n\r\n"])
    def test_a_list_of_only_a_header_is_rejected(self, tmp_path: Path, content: str) -> None:
        assert "no phone number" in rejection(write(tmp_path / "n.csv", content))

    def test_of_two_columns_with_usual_names_the_one_with_numbers_is_taken(self, tmp_path: Path) -> None:
        assert given_in(write(tmp_path / "n.csv", f"phone,mobile\n,{BARE_B}\n")) == [(1, BARE_B)]

    def test_the_error_without_a_recognizable_column_lists_the_columns(self, tmp_path: Path) -> None:
        path = write(tmp_path / "n.csv", "a,," + ",".join("x" * 40 for _ in range(25)) + "\n1,2,3\n")

        sentence = rejection(path)

        assert "only a, (no name), " + "x" * 30 + ", " in sentence
        assert sentence.endswith(" and 7 more: choose one with --column (in forms: Columns).")

    @pytest.mark.parametrize("column", ["c", "3", "0", "-1", "²"])
    def test_the_error_of_a_missing_column_lists_the_columns(self, tmp_path: Path, column: str) -> None:
        path = write(tmp_path / "n.csv", f"a,b\n1,{BARE_A}\n")

        assert rejection(path, column) == f"{path} has no column {column!r}, only a, b."

    def test_the_name_of_two_columns_is_rejected(self, tmp_path: Path) -> None:
        path = write(tmp_path / "n.csv", f"a,a\n{BARE_A},{BARE_B}\n")

        assert "give the column's number" in rejection(path, "a")
        assert given_in(path, "2") == [(1, BARE_B)]

    def test_broken_csv_is_rejected_with_the_row(self, tmp_path: Path) -> None:
        late = "phone\n" + f"{BARE_A}\n" * 10 + '"never closed\n'
        early = f"phone,b\n{BARE_A}," + "x" * 200_000

        assert "is not proper CSV near line 12" in rejection(write(tmp_path / "n.csv", late))
        assert given_in(write(tmp_path / "long.csv", early), "1") == [(1, BARE_A)]
        endless = write(tmp_path / "open.csv", '"' + "phone\n" * 20_000)
        assert "first row does not end within 64 KiB" in rejection(endless)


class TestParquet:
    @pytest.mark.parametrize(
        "values",
        [
            pa.array([BARE_A, None, BARE_B]),
            pa.array([BARE_A, None, BARE_B], pa.large_string()),
            pa.array([BARE_A, None, BARE_B]).dictionary_encode(),
            pa.array([BARE_A.encode(), None, BARE_B.encode()]),
            pa.array([int(BARE_A), None, int(BARE_B)]),
            pa.array([int(BARE_A), None, int(BARE_B)], pa.uint64()),
            pa.array([float(BARE_A), float("nan"), float(BARE_B)]),
            pa.array([Decimal(BARE_A), None, Decimal(BARE_B)], pa.decimal128(15, 0)),
        ],
        ids=lambda values: str(values.type),
    )
    def test_text_and_numbers_of_every_type_are_read(self, tmp_path: Path, values: pa.Array) -> None:
        path = write_parquet(tmp_path / "n.parquet", since=pa.array([True, False, True]), phone=values)

        assert given_in(path) == [(1, BARE_A), (3, BARE_B)]

    def test_numbers_that_are_not_integers_are_reported_as_invalid(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "n.parquet", phone=pa.array([1.5, float("inf")]))

        assert read_phone_list(path).invalid == 2

    def test_columns_are_found_and_chosen_as_in_csv(self, tmp_path: Path) -> None:
        path = write_parquet(
            tmp_path / "n.parquet", x=pa.array(["a", "b"]), y=pa.array([BARE_A, BARE_B]), z=pa.array([1, 2])
        )

        assert given_in(path) == given_in(path, "y") == given_in(path, "2") == [(1, BARE_A), (2, BARE_B)]
        assert rejection(path, "w").endswith("has no column 'w', only x, y, z.")

    @pytest.mark.parametrize("column", [None, "a"])
    def test_parquet_without_columns_is_rejected(self, tmp_path: Path, column: str | None) -> None:
        path = write_parquet(tmp_path / "n.parquet")

        assert rejection(path, column) == f"{path} has no columns: check the list."

    def test_columns_with_the_same_name_are_chosen_by_number(self, tmp_path: Path) -> None:
        table = pa.table([pa.array([BARE_A]), pa.array([BARE_B])], names=["a", "a"])
        pq.write_table(table, tmp_path / "n.parquet")

        assert given_in(tmp_path / "n.parquet", "2") == [(1, BARE_B)]

    def test_parquet_is_recognized_with_any_file_name_and_address(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "part-0", phone=pa.array([BARE_A]))
        fsspec.filesystem("memory").pipe("/lists/part-0", path.read_bytes())

        assert given_in(path) == given_in("memory://lists/part-0") == [(1, BARE_A)]
        assert read_phone_list(path).report.describe_position(1) == "data row 1 of part-0"

    def test_a_column_of_another_type_is_rejected(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "n.parquet", phone=pa.array([True]))

        assert "has neither text nor numbers" in rejection(path)

    def test_parquet_without_rows_is_rejected(self, tmp_path: Path) -> None:
        assert "no phone number" in rejection(
            write_parquet(tmp_path / "n.parquet", phone=pa.array([], pa.string()))
        )


class TestErrors:
    def test_a_missing_source_is_reported_with_its_name(self, tmp_path: Path) -> None:
        assert rejection(tmp_path / "no.txt") == f"{tmp_path}/no.txt does not exist: check the address."
        assert "memory://none/no.txt does not exist" in rejection("memory://none/no.txt")
        assert rejection(tmp_path) == f"{tmp_path} has no file with a list: check the address."

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_without_permission_is_reported(self, tmp_path: Path) -> None:
        path = write(tmp_path / "n.txt", BARE_A)
        path.chmod(0)

        assert "permissions" in rejection(path)

    def test_a_permission_error_of_the_store_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(*_: object, **__: object) -> None:
            raise PermissionError("Forbidden for AKIA123")

        monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem._open", deny)

        assert (
            rejection("memory://n.txt")
            == "memory://n.txt cannot be read: your permissions or credentials do not allow it."
        )

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("n.parquet", b"phone\n", "has a .parquet name, but is not a Parquet file"),
            ("n.parquet", b"PAR1 cut", "damaged"),
            ("n.xlsx", b"PK\x03\x04", "damaged or protected archive or spreadsheet"),
            ("n.gz", b"\x1f\x8b broken", "damaged"),
            ("n.gz", gzip.compress(BARE_A.encode() * 99, mtime=0)[:-9], "damaged"),
            (
                "n.csv.gz",
                gzip.compress(b"phone\n" + Random(1).randbytes(99_000).hex("\n", 6).encode())[:-999],
                "damaged",
            ),
            ("n.gz", gzip.compress(b"PAR1", mtime=0), "path of an uncompressed Parquet file"),
        ],
    )
    def test_files_whose_content_contradicts_their_name_are_rejected(
        self, tmp_path: Path, name: str, content: bytes, said: str
    ) -> None:
        assert said in rejection(write(tmp_path / name, content))

    def test_an_unknown_kind_of_address_is_rejected(self) -> None:
        assert "a scheme that is not allowed (nosuch://): use a file" in rejection("nosuch://b/x")

    @pytest.mark.parametrize(
        "address",
        ["nosuch://AKIA:sec/ret@b/n.csv", "nosuch://b/n.csv?X-Amz-Signature=secret", "nosuch://sec@ret@b/n"],
    )
    def test_no_message_contains_the_credentials_of_an_address(self, address: str) -> None:
        sentence = rejection(address)

        assert "nosuch://" in sentence
        assert "sec" not in sentence
        assert "ret" not in sentence

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            (NoCredentialsError(), "there are no AWS credentials"),
            (EndpointConnectionError(endpoint_url="http://secret"), "check AWS_ENDPOINT_URL"),
            (ClientError({"Error": {"Code": "Odd", "Message": "secret"}}, "GetObject"), "ClientError"),
            (ConnectionResetError("secret"), "ConnectionResetError"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_an_error_of_s3_becomes_one_sentence(
        self, monkeypatch: pytest.MonkeyPatch, fault: Exception, said: str
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise fault

        monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem._open", fail)

        sentence = rejection("memory://bucket/n.csv")

        assert sentence.startswith("memory://bucket/n.csv cannot be read: ")
        assert said in sentence
        assert "secret" not in sentence

    def test_reading_needs_no_s3_library(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delitem(sys.modules, "botocore.exceptions")

        assert "damaged" in rejection(write(tmp_path / "n.gz", b"\x1f\x8b broken"))


def test_a_phone_list_can_be_made_from_a_stored_table() -> None:
    phones = read_phone_list([A, A, "x"])

    again = PhoneList(phones.table, phones.report)

    assert repr(again) == repr(phones)


class TestConversationIds:
    def test_ids_are_read_from_text_csv_and_parquet_each_once_in_order(self, tmp_path: Path) -> None:
        text = write(tmp_path / "ids.txt", "# of March\nconv_2\n conv_1 \n\nconv_2\n")
        table = write(tmp_path / "ids.csv", f"phone,conversation_id\n{A},conv_2\n{A},conv_1\n{A},conv_2\n")
        parquet = write_parquet(tmp_path / "ids", n=pa.array([1, 2]), conversation_id=pa.array(["7", "007"]))

        assert read_ids(str(text)).ids == read_ids(str(table)).ids == ["conv_2", "conv_1"]
        assert read_ids(str(parquet)).ids == ["7", "007"]
        assert read_ids(str(table), column="2").ids == ["conv_2", "conv_1"]
        assert read_ids(str(table)).report.warnings() == []

    @pytest.mark.parametrize("number", [A, "886911425977", "0911 425 977", "+886 (0)911-425977"])
    def test_phone_numbers_in_place_of_ids_are_reported_and_not_repeated(
        self, tmp_path: Path, number: str
    ) -> None:
        ids = ["conv_1", "12345678-1234-1234-1234-123456789012", *[number] * 4]
        with pytest.raises(InputError) as caught:
            read_ids(str(write(tmp_path / "ids.txt", "\n".join(ids) + "\n")))

        assert str(caught.value) == (
            "ids.txt should contain conversation ids, but 4 of 6 entries look like phone numbers"
            " (entries 3, 4, 5, …): give numbers as a list of phone numbers."
        )
        assert number not in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        [
            f'"{A[1:]}"',
            f"'{A[1:]}",
            f"{A[1:]};{B[1:]}",
            f"{A} (work)",
            f"Anna {A}",
            f"mobile {A}",
            "8.86911425977E11",
            "＋８８６９１１４２５９７７",
        ],
    )
    def test_a_phone_number_in_place_of_an_id_is_found_in_every_notation(
        self, tmp_path: Path, text: str
    ) -> None:
        path = write(tmp_path / "ids.txt", f"conv_1\n{text}\n")

        with pytest.raises(InputError, match=r"1 of 2 entries looks like a phone number \(entry 2\)"):
            read_ids(str(path))

    def test_one_phone_number_in_place_of_an_id_is_reported_in_the_singular(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            read_ids(str(write(tmp_path / "ids.txt", f"{A}\n")))

        assert "1 of 1 entry looks like a phone number (entry 1): give" in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            # The first row could be a header or an id, and an id must not get lost.
            ("ids.csv", "conv_1\nconv_2\n", "ids.csv has no column 'conversation_id', only conv_1"),
            ("ids.csv", "conversation_id\n", "ids.csv contains no conversation id"),
            ("ids.txt", "# nothing\n", "ids.txt contains no conversation id"),
            ("the arguments", "", "the arguments contain no conversation id"),
        ],
    )
    def test_a_list_without_ids_is_rejected(self, tmp_path: Path, name: str, content: str, said: str) -> None:
        with pytest.raises(InputError) as caught:
            read_ids(str(write(tmp_path / name, content)))

        assert said in str(caught.value)
