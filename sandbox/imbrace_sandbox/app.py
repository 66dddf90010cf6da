"""The two endpoints of the gateway, under /3rd."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

from aiohttp import web

from imbrace_sandbox import answers, links, responses
from imbrace_sandbox.answers import Answer, Loss
from imbrace_sandbox.control import Control
from imbrace_sandbox.faults import LINKS, Fault
from imbrace_sandbox.mutations import mutate
from imbrace_sandbox.state import SandboxState

BASE_PATH = "/3rd"

# Makes the correct answer, or one with a loss.
Make = Callable[[Loss | None], Answer]


def make_app(state: SandboxState) -> web.Application:
    """Create the application with the gateway and its control endpoints."""
    app = web.Application()
    gateway = Gateway(state)
    app.router.add_get(f"{BASE_PATH}/conversations/links", gateway.get_links)
    app.router.add_get(f"{BASE_PATH}/conversations/{{conversation_id:[^/]*}}/messages", gateway.get_messages)
    Control(state).add_routes(app.router)
    return app


class Gateway:
    """Answers by the vendor's contract, or with the faults of the options."""

    def __init__(self, state: SandboxState) -> None:
        self._state = state
        self._links_answered = 0

    async def get_links(self, request: web.Request) -> web.StreamResponse:
        """Answer `GET /conversations/links`."""
        return await self._serve(request, "links", LINKS, lambda loss: self._links(request, loss))

    async def get_messages(self, request: web.Request) -> web.StreamResponse:
        """Answer `GET /conversations/{conversation_id}/messages`."""
        asked = self._state.known_spelling(request.match_info["conversation_id"])
        return await self._serve(
            request, "messages", asked, lambda loss: self._messages(request, asked, loss)
        )

    async def _serve(
        self, request: web.Request, endpoint: str, pinned: str, make: Make
    ) -> web.StreamResponse:
        stats = self._state.stats
        stats.arrive(endpoint)
        try:
            return await self._decide(request, pinned, make)
        finally:
            stats.leave()

    async def _decide(self, request: web.Request, pinned: str, make: Make) -> web.StreamResponse:
        state = self._state
        options = state.options
        headers = {"x-request-id": request.headers.get("x-request-id") or str(uuid4())}
        if len(request.raw_path) > options.max_url_bytes:
            return self._send(request, answers.broken("414", "html"), headers)
        wait_seconds = state.budget.wait_seconds(request.remote or "")
        if wait_seconds:
            return self._refuse(request, headers, wait_seconds)
        state.stats.accept()
        if pinned in state.asked:
            state.stats.pages[pinned] += 1
        fault = state.fault_injector.next(options, pinned)
        if fault.delay_seconds:
            await asyncio.sleep(fault.delay_seconds)
        if fault.name:
            state.stats.faults[fault.name] += 1
            return await self._spoil(request, headers, fault, make)
        return self._send(request, self._authorized(request, make, None), headers)

    def _send(self, request: web.Request, answer: Answer, headers: dict[str, str]) -> web.Response:
        answer = responses.compressed(answer, headers, request, self._state.options.compression)
        self._state.stats.statuses[str(answer.status)] += 1
        self._state.stats.bytes_sent += len(answer.body)
        return responses.respond(answer, headers)

    def _refuse(self, request: web.Request, headers: dict[str, str], wait_seconds: float) -> web.Response:
        stats, options = self._state.stats, self._state.options
        stats.refuse()
        if options.budget_silent:
            stats.statuses["dropped"] += 1
            return responses.drop(request)
        if options.budget_retry_after:
            headers["Retry-After"] = str(-int(-wait_seconds // 1))
        return self._send(request, answers.too_many_requests(), headers)

    def _authorized(self, request: web.Request, make: Make, loss: Loss | None) -> Answer:
        token = request.headers.get("x-access-token")
        if token is None:
            return answers.unauthorized("missing")
        if token != self._state.options.token or self._state.options.token_expired:
            return answers.unauthorized()
        return make(loss)

    async def _spoil(
        self, request: web.Request, headers: dict[str, str], fault: Fault, make: Make
    ) -> web.StreamResponse:
        """Answer with a fault: of the connection, or else a complete answer."""
        options, stats = self._state.options, self._state.stats
        name = fault.name
        if name == "cut_before":
            stats.statuses["cut"] += 1
            return responses.drop(request)
        if name == "stall":
            stats.statuses["stalled"] += 1
            await responses.stall(options.stall_seconds)
            return responses.drop(request)
        if name == "504":
            await asyncio.sleep(options.gateway_timeout_seconds)
            return self._send(request, answers.proxy_timeout(), headers)
        wrong = self._wrong_answer(request, fault)
        if wrong is not None:
            return self._send(request, wrong, headers)
        if name in ("short", "lossy"):
            loss = Loss(fault.roll, is_counted=name == "lossy")
            return self._send(request, self._authorized(request, make, loss), headers)
        complete = self._authorized(request, make, None)
        if name != "not_json":
            complete = responses.compressed(complete, headers, request, options.compression)
        if name == "not_json":
            half = complete.body[: max(1, len(complete.body) // 2)]
            return self._send(request, Answer(complete.status, half, complete.content_type), headers)
        return await self._send_badly(request, headers, fault, complete)

    async def _send_badly(
        self, request: web.Request, headers: dict[str, str], fault: Fault, complete: Answer
    ) -> web.StreamResponse:
        stats = self._state.stats
        if fault.name == "drip":
            stats.statuses["stalled"] += 1
            return await responses.drip(request, complete, headers, self._state.options.drip_seconds)
        is_cut = fault.name == "cut_body"
        stats.statuses["cut" if is_cut else "stalled"] += 1
        response = await responses.send_half(request, complete, headers, is_chunked=fault.roll < 0.5)
        if not is_cut:
            await responses.stall(self._state.options.stall_seconds)
        responses.cut(request)
        return response

    def _wrong_answer(self, request: web.Request, fault: Fault) -> Answer | None:
        """Return the answer of a fault that does not need the correct answer, or None."""
        options = self._state.options
        is_links = "conversation_id" not in request.match_info
        match fault.name:
            case "400":
                return answers.failure(
                    400, "phone_numbers is required" if is_links else "conversation_id is required"
                )
            case "301" | "302" | "307" | "308":
                return answers.redirect(fault.name, str(request.url))
            case "401":
                return answers.unauthorized(fault.form)
            case "403":
                received = request.query.get("organization_id", "")
                return answers.forbidden(fault.form, options.organization_id, received)
            case "404":
                return answers.failure(
                    404, answers.NO_CONVERSATIONS if is_links else answers.CONVERSATION_NOT_FOUND
                )
            case "429":
                return answers.too_many_requests()
            case "500" | "502" | "503":
                return answers.broken(fault.name, fault.form)
            case "html":
                return answers.sign_in_page()
        return None

    def _links(self, request: web.Request, loss: Loss | None) -> Answer:
        state, options = self._state, self._state.options
        # A number that is requested twice is answered once.
        asked = dict.fromkeys(digits for digits in request.query.getall("phone_numbers", []) if digits)
        organization_id = request.query.get("organization_id")
        if not asked:
            return answers.failure(400, "phone_numbers is required")
        if not organization_id:
            return answers.failure(400, "organization_id is required")
        if organization_id != options.organization_id:
            return answers.mismatch(options.organization_id, organization_id)
        phones = [(digits, state.look_up(digits)) for digits in asked]
        if not any(conversations for _, conversations in phones):
            return answers.failure(404, answers.NO_CONVERSATIONS)
        self._links_answered += 1
        is_second = self._links_answered % 2 == 0
        if options.links_shape == "envelope" or (options.links_shape == "alternating" and is_second):
            return links.links_envelope(phones, options, loss)
        return links.links_array(phones, options, loss)

    def _messages(self, request: web.Request, conversation_id: str, loss: Loss | None) -> Answer:
        state = self._state
        if not conversation_id:
            return answers.failure(400, "conversation_id is required")
        conversation = state.conversations.get(conversation_id)
        if conversation is None:
            return answers.failure(404, answers.CONVERSATION_NOT_FOUND)
        limit, skip = _number(request, "limit", 10), _number(request, "skip", 0)
        if limit is None or skip is None or limit == 0:
            return answers.failure(400, "limit and skip must be integers")
        state.asked[conversation_id] += 1
        if state.before_page is not None:
            state.before_page(conversation_id, state.asked[conversation_id])
        mutate(conversation, state.options, state.asked[conversation_id])
        if conversation.is_vanished:
            return answers.failure(404, answers.CONVERSATION_NOT_FOUND)
        return answers.page(conversation, state.options, skip, limit, loss)


def _number(request: web.Request, name: str, default: int) -> int | None:
    """Read a parameter; None if it is not an integer from 0."""
    text = request.query.get(name)
    if text is None:
        return default
    # int() takes seconds for very long texts.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
