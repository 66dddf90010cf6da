"""The control endpoints, for users in other processes."""

from __future__ import annotations

import json
from contextlib import ExitStack

import httpx
import pytest

from imbrace_sandbox import Sandbox
from tests.sandbox.conftest import TLS
from tests.sandbox.reading import first_of, get_links, get_page


@pytest.fixture
def control(box: Sandbox, stack: ExitStack) -> httpx.Client:
    """A client without a token, at the root of the server."""
    return stack.enter_context(httpx.Client(base_url=box.control_url, verify=TLS))


def test_phones_are_listed_one_per_line(box: Sandbox, control: httpx.Client) -> None:
    answer = control.get("/_sandbox/phones")

    assert answer.text.splitlines() == box.phones
    assert answer.headers["content-type"].startswith("text/plain")


def test_phones_can_be_listed_as_people_write_them(box: Sandbox, control: httpx.Client) -> None:
    answer = control.get("/_sandbox/phones", params={"shape": "messy", "region": "TW"})

    assert answer.text == "".join(f"{line}\n" for line in box.messy_phones("TW"))


def test_links_and_conversations_are_listed(box: Sandbox, control: httpx.Client) -> None:
    assert control.get("/_sandbox/links").json() == box.links
    assert control.get("/_sandbox/conversations").json() == box.conversations


def test_the_truth_is_lines_of_json_oldest_first(box: Sandbox, control: httpx.Client) -> None:
    box.append(first_of(box), 2_500)

    lines = control.get(f"/_sandbox/conversations/{first_of(box)}/messages").text.splitlines()

    assert [json.loads(line) for line in lines] == box.truth(first_of(box))


def test_stats_count_and_can_be_reset(box: Sandbox, client: httpx.Client, control: httpx.Client) -> None:
    get_page(client, first_of(box))
    get_page(client, "conv_nobody")
    get_links(client, box, *box.phones)

    counted = control.get("/_sandbox/stats").json()
    control.post("/_sandbox/reset-stats")
    again = control.get("/_sandbox/stats").json()

    assert counted["requests"] == {"messages": 2, "links": 1}
    assert counted["statuses"] == {"200": 2, "404": 1}
    assert counted["pages"] == {first_of(box): 1}
    assert sum(counted["accepted_by_second"].values()) == counted["accepted"] == 3
    assert (counted["max_in_flight"], counted["in_flight"]) == (1, 0)
    assert counted["bytes_sent"] > 1_000
    assert again["requests"] == {}


def test_faults_can_be_changed_pinned_fixed_and_queued(
    box: Sandbox, client: httpx.Client, control: httpx.Client
) -> None:
    conversation_id = first_of(box)

    pinned = control.post("/_sandbox/faults", json={"break": {conversation_id: "502"}, "page_cap": 3})
    broken = get_page(client, conversation_id)
    control.post("/_sandbox/faults", json={"repair": True, "next": ["ok", "429"]})
    after = [get_page(client, conversation_id) for _ in range(2)]

    assert pinned.json()["broken"] == {conversation_id: "502"}
    assert broken.status_code == 502
    assert [answer.status_code for answer in after] == [200, 429]
    assert after[0].json()["total"] == 3


def test_options_are_shown_without_the_token(control: httpx.Client) -> None:
    shown = control.get("/_sandbox/faults").json()

    assert shown["seed"] == 7
    assert "token" not in shown


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"speed": 3}, "there is no option speed"),
        ({"seed": 3}, "seed is fixed when the sandbox starts"),
        ({"mixed": 2}, "mixed must be from 0 to 1, not 2"),
        ({"break": {"conv_nobody": "500"}}, "there is no conversation conv_nobody"),
        ({"next": ["418"]}, "there is no fault '418'"),
        ([], "the body must be a JSON object"),
    ],
)
def test_a_wrong_change_is_explained_and_changes_nothing(
    box: Sandbox, control: httpx.Client, body: object, sentence: str
) -> None:
    before = box.options

    answer = control.post("/_sandbox/faults", json=body)

    assert answer.status_code == 400
    assert answer.json()["message"].startswith(sentence)
    assert box.options == before


def test_a_conversation_can_be_changed(box: Sandbox, control: httpx.Client) -> None:
    path = f"/_sandbox/conversations/{first_of(box)}"
    oldest = box.truth(first_of(box))[0]["_id"]

    done = control.post(path, json={"append": 3, "backdate": 1, "delete": [oldest], "edit": 2}).json()
    gone = control.post(path, json={"vanish": True}).json()
    back = control.post(path, json={"restore": True}).json()

    assert done["count"] == 38
    assert done["ids"]["delete"] == [oldest]
    assert {name: len(ids) for name, ids in done["ids"].items()} == {
        "append": 3,
        "backdate": 1,
        "delete": 1,
        "edit": 2,
    }
    assert (gone["is_vanished"], back["is_vanished"]) == (True, False)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"paint": 1}, "there is no action paint"),
        ({"append": "x"}, "append takes a number or a list of ids"),
        ({"append": [1]}, "append takes an integer from 0"),
        ({"delete": 99}, "there are 35 messages, not 99"),
        ({"edit": True}, "edit takes a number or a list of ids"),
    ],
)
def test_a_wrong_change_of_a_conversation_is_explained(
    box: Sandbox, control: httpx.Client, body: object, sentence: str
) -> None:
    answer = control.post(f"/_sandbox/conversations/{first_of(box)}", json=body)

    assert (answer.status_code, answer.json()) == (400, {"message": sentence})


def test_an_unknown_conversation_has_no_truth(control: httpx.Client) -> None:
    answer = control.get("/_sandbox/conversations/conv_nobody/messages")

    assert answer.status_code == 404
