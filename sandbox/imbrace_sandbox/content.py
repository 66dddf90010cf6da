"""The content of generated messages, for every type of the contract and for some unknown ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

_PHRASES = (
    "Hello, I ordered last week and nothing has come yet.",
    "Your order {n} left our warehouse this morning.",
    "Thank you!",
    "Could you tell me your order number, please?",
    "It is {n}, on the name of Chan.",
    "請問我的訂單 {n} 什麼時候會到?",
    "您好,已為您查詢,預計明天送達。",
    "唔該晒,我等你哋電話。",
    "注文番号は {n} です。よろしくお願いします。",
    "ขอบคุณมากค่ะ หมายเลขคำสั่งซื้อคือ {n}",
    "Đơn hàng {n} của tôi bị giao nhầm rồi.",
    "¿Me puede cambiar la cita del día {n}? ¡Gracias!",
    "Ich hätte gern eine Rechnung über {n} €, größer als „Müller & Söhne“.",
    "شكرا جزيلا، رقم الطلب {n}",
    "मेरा ऑर्डर नंबर {n} है, कृपया जाँच करें।",
    "Отправьте, пожалуйста, счёт № {n}.",
    "👍🏽 perfect, see you at {n} 🎉",
    "I was charged twice: 1) {n} on Monday, 2) the same again on Tuesday.",
    "ok",
    "Please hold the line while I check that with a colleague; this can take a minute or two.",
)
_CHOICES = ("Red", "Blue", "White", "Yes, please", "不用了,謝謝", "Talk to a person")


def phrase(digest: bytes) -> str:
    """Return one to three sentences."""
    number = int.from_bytes(digest[20:23], "big")
    many = (1, 1, 2, 3)[digest[23] & 3]
    return " ".join(
        _PHRASES[digest[24 + at] % len(_PHRASES)].replace("{n}", str(number)) for at in range(many)
    )


def _text(digest: bytes) -> Any:
    return {"text": phrase(digest), "is_mail": digest[28] < 16}


def workflow_text(digest: bytes) -> Any:
    """Return a text of JSON that a workflow writes for its own use; customers do not see it."""
    return {"text": f'{{"intent":"order_status","step":{digest[28]}}}', "is_mail": False}


def _quick_reply(digest: bytes) -> Any:
    choice = digest[28] % len(_CHOICES)
    return {"title": _CHOICES[choice], "payload": f"{choice}_Sandbox flow", "description": ""}


def _response(digest: bytes) -> Any:
    replies: list[dict[str, Any]] = []
    for at in range(1 + digest[28] % 4):
        # By the contract, `id` is a number or a string, and `description` may be missing.
        reply = {"id": at if digest[29] & 1 else str(at), "content_type": "text", "title": _CHOICES[at]}
        reply["payload"] = f"{at}_Sandbox flow"
        if digest[30] & 1:
            reply["description"] = "one of several"
        replies.append(reply)
    return {"title": "", "text": phrase(digest), "quick_replies": replies}


def _media(extension: str) -> Callable[[bytes], Any]:
    def content(digest: bytes) -> Any:
        made: dict[str, Any] = {"url": f"https://files.example.invalid/{digest[20:28].hex()}.{extension}"}
        if digest[28] & 1:
            made["caption"] = phrase(digest)
        return made

    return content


def _video(digest: bytes) -> Any:
    return {"url": f"https://files.example.invalid/{digest[20:28].hex()}.mp4", "text": phrase(digest)}


def _whatsapp_template(digest: bytes) -> Any:
    return {
        "text": "Dear {{1}}, your order {{2}} is ready.",  # prose: ok (a salutation)
        "variables": ["Chan", str(digest[28])],
    }


def _file(digest: bytes) -> Any:
    # The older form does not have an address.
    if digest[29] & 1:
        return {"name": "offer.zip", "media_id": digest[20:28].hex()}
    return {"url": f"https://files.example.invalid/{digest[20:28].hex()}.zip", "name": "offer.zip"}


def _location(digest: bytes) -> Any:
    return {"latitude": 22 + digest[28] / 256, "longitude": 114 + digest[29] / 256, "name": "Shop"}


def _contact(digest: bytes) -> Any:
    return {"contacts": [{"name": {"formatted_name": "Chan Tai Man"}, "phones": []}]}


def _carousel(digest: bytes) -> Any:
    return {"cards": [{"title": phrase(digest), "rank": digest[28]}], "version": 2}


def _voice_call(digest: bytes) -> Any:
    return {"duration": digest[28] * 1.5, "missed": bool(digest[29] & 1)}


CONTENTS: Mapping[str, Callable[[bytes], Any]] = MappingProxyType(
    {
        "text": _text,
        "jaas.conference": _text,
        "message_template": _text,
        "quick_reply": _quick_reply,
        "response": _response,
        "image": _media("jpg"),
        "audio": _media("ogg"),
        "pdf": _media("pdf"),
        "whatsapp.sticker": _media("webp"),
        "video": _video,
        "whatsapp.template": _whatsapp_template,
        "file": _file,
        "location": _location,
        "contact": _contact,
        "carousel.v2": _carousel,
        "voice_call": _voice_call,
    }
)

# Which types the contact sends, and which a bot; people of the business send the rest.
OF_CONTACT = frozenset({"quick_reply", "location", "contact", "whatsapp.sticker"})
OF_BOT = frozenset({"response", "message_template", "whatsapp.template", "carousel.v2"})

TYPES = tuple(CONTENTS)
_WEIGHTS = (142, 5, 7, 22, 18, 14, 6, 7, 5, 5, 7, 5, 4, 4, 3, 2)

# One byte of a digest chooses a type through this table.
TYPE_OF_BYTE = tuple(kind for kind, weight in zip(TYPES, _WEIGHTS, strict=True) for _ in range(weight))
