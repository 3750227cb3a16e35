"""`/v1/responses`: a chat under other names, whose answers are kept to be gone on from.

A request is turned into a chat (`request.responses`), which takes the way of all chats; a writer of
its own tells the answer (`response.response_writer`), and the store keeps both for the API key that
sent them. Knows the order of these; nothing about how each is done.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import APIRouter, Request, Response

from lookm.errors import LookmError
from lookm.types import Request as EngineRequest
from server.api_errors import ApiError, to_api_error
from server.health import Live, tenant
from server.media import MediaError
from server.openai import openapi
from server.openai.openapi import STREAMED, ErrorEnvelope, described
from server.openai.reasoning import thinking_reader
from server.openai.request.body import read
from server.openai.request.input_items import EARLIER, Placed
from server.openai.request.responses import Asked, asked
from server.openai.response.chat_chunks import ChatChunks
from server.openai.response.choices import Acceptance
from server.openai.response.response_answer import begun
from server.openai.response.response_writer import ResponseWriter
from server.openai.response.whole import WholeAnswer
from server.openai.response_store import StoredResponse, Turn
from server.openai.routes import EXAMPLE_MODEL, RequestHandler
from server.openai.schemas.input_items import InputMessage, Item, ItemReference
from server.openai.schemas.response_answers import OutputAnswer, ResponseAnswer
from server.openai.schemas.responses import ResponsesRequest
from server.openai.stored_items import answered, with_id
from server.openai.tools.checks import call_reader
from server.worker.worker_errors import WorkerError

router = APIRouter(
    prefix="/v1", tags=["responses"], responses={"default": {"model": ErrorEnvelope}}
)


@router.post(
    "/responses",
    openapi_extra=described(ResponsesRequest, openapi.response_example(EXAMPLE_MODEL)),
    responses={200: {"model": ResponseAnswer, "content": STREAMED}},
)
async def create_response(request: Request, live: Live) -> Response:
    """Answer a text or items with images, whole or as a stream, and keep the answer."""
    body = await read(ResponsesRequest, request)
    exchange = Exchange.of(body, request, live)
    writer = exchange.writer()
    try:
        response = await exchange.handler.respond(exchange.prepare, writer)
    except (ApiError, LookmError, MediaError, WorkerError) as error:
        raise exchange.chat.explained(to_api_error(error)) from error
    if isinstance(response, WholeAnswer):
        exchange.finished(writer.items.output, b"".join(response.written))
    return response


def owner_of(request: Request) -> str:
    """Whose responses the request may see: its API key's, by a digest."""
    return str(getattr(request.state, "key_digest", ""))


@dataclass(slots=True)
class Exchange:
    """One response on its way: the request, the chat that it is, and what came before it.

    `turns` is what will be stored with the answer; None: it is not.
    """

    body: ResponsesRequest
    chat: Asked
    handler: RequestHandler
    answer: ResponseAnswer
    owner: str
    earlier: tuple[Turn, ...]
    turns: tuple[Turn, ...] | None = None

    @classmethod
    def of(cls, body: ResponsesRequest, request: Request, live: Live) -> "Exchange":
        """Raises `ApiError` for what comes before it, and is not there."""
        owner, before = owner_of(request), body.previous_response_id
        earlier = () if before is None else live.responses.get(before, owner, EARLIER).turns
        chat, translator = asked(body), live.translator
        response_id = f"resp_{uuid.uuid4().hex}"
        handler = RequestHandler(live, request, chat.chat, response_id, Acceptance(1))
        answer = begun(body, response_id, translator.defaults)
        return cls(body, chat, handler, answer, owner, earlier)

    def writer(self) -> ResponseWriter:
        """Tells the answer. Not held by this, which it holds: what both hold is gone with them."""
        chat, translator = self.chat, self.handler.live.translator
        chunks = ChatChunks(
            self.handler.header,
            partial(call_reader, chat.chat, translator.tool_support),
            partial(thinking_reader, chat.chat, translator.thinking),
        )
        return ResponseWriter(self.answer, chunks, chat.explained, self.finished)

    async def prepare(self) -> EngineRequest:
        """The engine's request. What is stored is held from here on, and the rest forgotten."""
        live, chat = self.handler.live, self.chat
        own = await live.translator.pools.text(partial(self._placed, self._own()))
        self.body.input = ""  # data URLs may be 100 MB, and the answer may take minutes
        if self.body.store is not False:
            turns = (*self.earlier, own)
            if self.handler.held.enter_context(live.responses.holding(turns)):
                self.turns = turns
                self.answer.store = True
        del own
        self.earlier = ()
        return await live.translator.chat(
            chat.chat, self.handler.id, tenant(self.handler.request, live)
        )

    def finished(self, output: Sequence[OutputAnswer], written: bytes) -> None:
        """Store the response, written as JSON."""
        if self.turns is not None:
            turns = (*self.turns, Turn.of(self.owner, answered(output)))
            stored = StoredResponse(self.handler.id, self.owner, turns, written)
            self.handler.live.responses.put(stored)

    def _own(self) -> list[Item]:
        """The items of this request alone. Raises `ApiError` for a reference to nothing."""
        given = self.body.input
        if isinstance(given, str):
            return [with_id(InputMessage(type="message", role="user", content=given))]
        find = self.handler.live.responses.item
        return [
            find(item.id, self.owner, f"input[{n}].id")
            if isinstance(item, ItemReference)
            else with_id(item)
            for n, item in enumerate(given)
        ]

    def _placed(self, own: Sequence[Item]) -> Turn:
        """Give the chat its messages, those that came before first; what is new, measured."""
        placed: list[Placed] = [(EARLIER, item) for turn in self.earlier for item in turn.items]
        if isinstance(self.body.input, str):
            placed += [("input", item) for item in own]
        else:
            placed += [(f"input[{n}]", item) for n, item in enumerate(own)]
        self.chat.place(self.body.instructions, placed)
        return Turn.of(self.owner, own)
