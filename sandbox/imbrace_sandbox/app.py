"""The two endpoints of the gateway, under /3rd."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

from aiohttp import web

from imbrace_sandbox import answers, delivery, links
from imbrace_sandbox.answers import Answer, Loss
from imbrace_sandbox.churn import churn
from imbrace_sandbox.control import Control
from imbrace_sandbox.faults import LINKS, Trouble
from imbrace_sandbox.world import World

BASE_PATH = "/3rd"

# Makes the right answer, or one that has lost something.
Make = Callable[[Loss | None], Answer]


def make_app(world: World) -> web.Application:
    """Put the gateway and its control endpoints together."""
    app = web.Application()
    gateway = Gateway(world)
    app.router.add_get(f"{BASE_PATH}/conversations/links", gateway.get_links)
    app.router.add_get(f"{BASE_PATH}/conversations/{{conversation_id:[^/]*}}/messages", gateway.get_messages)
    Control(world).add_routes(app.router)
    return app


class Gateway:
    """Answers as the contract says, after the trouble that the options ask for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._links_answered = 0

    async def get_links(self, request: web.Request) -> web.StreamResponse:
        """Answer `GET /conversations/links`."""
        return await self._serve(request, "links", LINKS, lambda loss: self._links(request, loss))

    async def get_messages(self, request: web.Request) -> web.StreamResponse:
        """Answer `GET /conversations/{conversation_id}/messages`."""
        asked = self._world.known_spelling(request.match_info["conversation_id"])
        return await self._serve(
            request, "messages", asked, lambda loss: self._messages(request, asked, loss)
        )

    async def _serve(
        self, request: web.Request, endpoint: str, pinned: str, make: Make
    ) -> web.StreamResponse:
        stats = self._world.stats
        stats.arrive(endpoint)
        try:
            return await self._decide(request, pinned, make)
        finally:
            stats.leave()

    async def _decide(self, request: web.Request, pinned: str, make: Make) -> web.StreamResponse:
        world = self._world
        options = world.options
        headers = {"x-request-id": request.headers.get("x-request-id") or str(uuid4())}
        if len(request.raw_path) > options.max_url_bytes:
            return self._send(request, answers.broken("414", "html"), headers)
        wait_seconds = world.budget.wait_seconds(request.remote or "")
        if wait_seconds:
            return self._refuse(request, headers, wait_seconds)
        world.stats.accept()
        if pinned in world.asked:
            world.stats.pages[pinned] += 1
        trouble = world.desk.deal(options, pinned)
        if trouble.delay_seconds:
            await asyncio.sleep(trouble.delay_seconds)
        if trouble.fault:
            world.stats.faults[trouble.fault] += 1
            return await self._spoil(request, headers, trouble, make)
        return self._send(request, self._authorized(request, make, None), headers)

    def _send(self, request: web.Request, answer: Answer, headers: dict[str, str]) -> web.Response:
        answer = delivery.compressed(answer, headers, request, self._world.options.compression)
        self._world.stats.statuses[str(answer.status)] += 1
        self._world.stats.bytes_sent += len(answer.body)
        return delivery.respond(answer, headers)

    def _refuse(self, request: web.Request, headers: dict[str, str], wait_seconds: float) -> web.Response:
        stats, options = self._world.stats, self._world.options
        stats.refuse()
        if options.budget_silent:
            stats.statuses["dropped"] += 1
            return delivery.drop(request)
        if options.budget_retry_after:
            headers["Retry-After"] = str(-int(-wait_seconds // 1))
        return self._send(request, answers.too_many_requests(), headers)

    def _authorized(self, request: web.Request, make: Make, loss: Loss | None) -> Answer:
        token = request.headers.get("x-access-token")
        if token is None:
            return answers.unauthorized("missing")
        if token != self._world.options.token or self._world.options.token_expired:
            return answers.unauthorized()
        return make(loss)

    async def _spoil(
        self, request: web.Request, headers: dict[str, str], trouble: Trouble, make: Make
    ) -> web.StreamResponse:
        """Answer with a fault; those of the way first, because the rest are plain answers."""
        options, stats = self._world.options, self._world.stats
        fault = trouble.fault
        if fault == "cut_before":
            stats.statuses["cut"] += 1
            return delivery.drop(request)
        if fault == "stall":
            stats.statuses["stalled"] += 1
            await delivery.stall(options.stall_seconds)
            return delivery.drop(request)
        if fault == "504":
            await asyncio.sleep(options.gateway_timeout_seconds)
            return self._send(request, answers.proxy_timeout(), headers)
        wrong = self._wrong_answer(request, trouble)
        if wrong is not None:
            return self._send(request, wrong, headers)
        if fault in ("short", "lossy"):
            loss = Loss(trouble.roll, is_counted=fault == "lossy")
            return self._send(request, self._authorized(request, make, loss), headers)
        whole = self._authorized(request, make, None)
        if fault != "not_json":
            whole = delivery.compressed(whole, headers, request, options.compression)
        if fault == "not_json":
            half = whole.body[: max(1, len(whole.body) // 2)]
            return self._send(request, Answer(whole.status, half, whole.content_type), headers)
        return await self._send_badly(request, headers, trouble, whole)

    async def _send_badly(
        self, request: web.Request, headers: dict[str, str], trouble: Trouble, whole: Answer
    ) -> web.StreamResponse:
        stats = self._world.stats
        if trouble.fault == "drip":
            stats.statuses["stalled"] += 1
            return await delivery.drip(request, whole, headers, self._world.options.drip_seconds)
        is_cut = trouble.fault == "cut_body"
        stats.statuses["cut" if is_cut else "stalled"] += 1
        response = await delivery.send_half(request, whole, headers, is_chunked=trouble.roll < 0.5)
        if not is_cut:
            await delivery.stall(self._world.options.stall_seconds)
        delivery.cut(request)
        return response

    def _wrong_answer(self, request: web.Request, trouble: Trouble) -> Answer | None:
        """Return the answer of a fault that needs no right answer, or None."""
        options = self._world.options
        is_links = "conversation_id" not in request.match_info
        match trouble.fault:
            case "400":
                return answers.failure(
                    400, "phone_numbers is required" if is_links else "conversation_id is required"
                )
            case "301" | "302" | "307" | "308":
                return answers.redirect(trouble.fault, str(request.url))
            case "401":
                return answers.unauthorized(trouble.form)
            case "403":
                received = request.query.get("organization_id", "")
                return answers.forbidden(trouble.form, options.organization_id, received)
            case "404":
                return answers.failure(
                    404, answers.NO_CONVERSATIONS if is_links else answers.CONVERSATION_NOT_FOUND
                )
            case "429":
                return answers.too_many_requests()
            case "500" | "502" | "503":
                return answers.broken(trouble.fault, trouble.form)
            case "html":
                return answers.sign_in_page()
        return None

    def _links(self, request: web.Request, loss: Loss | None) -> Answer:
        world, options = self._world, self._world.options
        # A number that is asked for twice is answered once.
        asked = dict.fromkeys(digits for digits in request.query.getall("phone_numbers", []) if digits)
        organization_id = request.query.get("organization_id")
        if not asked:
            return answers.failure(400, "phone_numbers is required")
        if not organization_id:
            return answers.failure(400, "organization_id is required")
        if organization_id != options.organization_id:
            return answers.mismatch(options.organization_id, organization_id)
        phones = [(digits, world.look_up(digits)) for digits in asked]
        if not any(conversations for _, conversations in phones):
            return answers.failure(404, answers.NO_CONVERSATIONS)
        self._links_answered += 1
        is_second = self._links_answered % 2 == 0
        if options.links_shape == "envelope" or (options.links_shape == "alternating" and is_second):
            return links.links_envelope(phones, options, loss)
        return links.links_array(phones, options, loss)

    def _messages(self, request: web.Request, conversation_id: str, loss: Loss | None) -> Answer:
        world = self._world
        if not conversation_id:
            return answers.failure(400, "conversation_id is required")
        conversation = world.conversations.get(conversation_id)
        if conversation is None:
            return answers.failure(404, answers.CONVERSATION_NOT_FOUND)
        limit, skip = _number(request, "limit", 10), _number(request, "skip", 0)
        if limit is None or skip is None or limit == 0:
            return answers.failure(400, "limit and skip must be whole numbers")
        world.asked[conversation_id] += 1
        if world.before_page is not None:
            world.before_page(conversation_id, world.asked[conversation_id])
        churn(conversation, world.options, world.asked[conversation_id])
        if conversation.is_vanished:
            return answers.failure(404, answers.CONVERSATION_NOT_FOUND)
        return answers.page(conversation, world.options, skip, limit, loss)


def _number(request: web.Request, name: str, default: int) -> int | None:
    """Read a parameter; None if it is no number from 0."""
    text = request.query.get(name)
    if text is None:
        return default
    # More digits than any list could need: int() takes seconds for very many.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
