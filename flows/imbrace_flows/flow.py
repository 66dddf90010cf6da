"""The base of our flows: their form, and one plain sentence for parameters that cannot be used."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from types import NoneType
from typing import Annotated, Any, ParamSpec, TypeVar, get_args

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.exceptions import ParameterTypeError, SignatureMismatchError
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH
from prefect.states import Failed
from prefect.utilities.callables import ParameterSchema, parameter_schema
from pydantic import BaseModel, Field, GetJsonSchemaHandler, ValidationError
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from imbrace_flows.cancellation import reported_when_cancelled
from imbrace_flows.earlier_reports import earlier_reports_replaced
from imbrace_flows.log import logger_of
from imbrace_flows.params import RunParams
from imbrace_lake.printable import ADDRESS_WITHOUT_SECRETS, printable

P = ParamSpec("P")
R = TypeVar("R")

TITLES = {"credentials": "iMBrace credentials", "lake": "Conversation lake"}

_SETTINGS = {"credentials": "IMBRACE_TOKEN and IMBRACE_ORGANIZATION", "lake": "IMBRACE_LAKE"}
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

logger = logger_of("runs")
# As Prefect writes states: the type is left out if it is the name.
_CALM_END = re.compile(r"Finished in state (Cancelled\(|.*type=(PAUSED|CANCELLED)\)$)", re.DOTALL)
# Of a run that its worker cancels.
_NO_END = "Finished in state Running("
_validates_ours: ContextVar[bool] = ContextVar("_validates_ours", default=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """What the function of a flow gets instead of parameters that cannot be used: why, in one sentence."""

    reason: str


class LakeFlow(Flow[P, R]):
    """A flow that keeps its parameters, which can contain phone numbers, out of logs."""

    def __init__(self, function: Callable[P, R], **options: Any) -> None:
        # Prefect makes the form of each flow at once, which takes 20 ms in every process that imports it.
        function.__signature__ = inspect.Signature()  # type: ignore[attr-defined] # of functions
        super().__init__(function, **options)
        del function.__signature__  # type: ignore[attr-defined] # as above

    @property
    def parameters(self) -> ParameterSchema:
        """The form of the parameters."""
        return parameter_schema(self.fn)

    @parameters.setter
    def parameters(self, _: ParameterSchema) -> None:
        pass

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the function, from which Prefect makes the form, with a title for each field."""
        signature = inspect.signature(self.fn)
        return signature.replace(parameters=[_titled(one) for one in signature.parameters.values()])

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Check the parameters as Prefect does, but let the function report those that cannot be used.

        Prefect itself would report them in several lines, and repeat rejected values in its log.
        """
        logging.getLogger("prefect.flow_runs").addFilter(_calm_end)
        expected = inspect.signature(self.fn).parameters
        for name, title in TITLES.items():
            given = parameters.get(name)
            # A caller can switch the check of the form off.
            if (
                isinstance(given, Mapping)
                and "$ref" not in given
                and _has_secret(_kind(expected[name]), given)
            ):
                return {**dict.fromkeys(expected), "params": Rejected(f"{title}: choose {_SAVED}")}
        try:
            with _unrepeated():
                return super().validate_parameters(parameters)
        except SignatureMismatchError:
            unknown = ", ".join(printable(name) for name in parameters if name not in expected)
            reason = f"there is no parameter {unknown}: this flow has {', '.join(expected)}"
        except ParameterTypeError as exc:
            # Its text is several lines.
            error = exc.__context__
            reason = (
                _explain(error, expected)
                if isinstance(error, ValidationError)
                else _explain_blocks(error, parameters, expected)
            )
        return {**dict.fromkeys(expected), "params": Rejected(reason)}

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters as JSON, as Prefect does, which imports FastAPI for it (0.1 s)."""
        if all(isinstance(value, RunParams | None) for value in parameters.values()):
            return {name: value and value.model_dump(mode="json") for name, value in parameters.items()}
        return super().serialize_parameters(parameters)

    def with_options(self, *args: Any, **kwargs: Any) -> LakeFlow[P, R]:
        """Return a flow with other options, as Prefect does; it stays a `LakeFlow`."""
        changed = super().with_options(*args, **kwargs)
        changed.__class__ = LakeFlow
        return changed  # type: ignore[return-value] # it is one now


def flow(**options: Any) -> Callable[[Callable[P, Awaitable[State[Any]]]], LakeFlow[P, Any]]:
    """Make a function a flow, as Prefect's decorator does, whose name the `prefect` command looks for.

    The first parameter of the function is `params`.
    """

    def decorate(function: Callable[P, Awaitable[State[Any]]]) -> LakeFlow[P, Any]:
        @wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
            for given in (*args, *kwargs.values()):
                if isinstance(given, Rejected):
                    logger.error("%s", given.reason)
                    return Failed(message=given.reason)
            async with reported_when_cancelled(), earlier_reports_replaced():
                return await function(*args, **kwargs)

        # Results stay in the process, but without a storage Prefect asks the server for its default, twice.
        storage = PREFECT_LOCAL_STORAGE_PATH.value()
        return LakeFlow(run, result_storage=storage, **options)

    return decorate


def _kind(parameter: inspect.Parameter) -> type[BaseModel]:
    """Return the class of a parameter, which may be optional."""
    (kind,) = (one for one in get_args(parameter.annotation) or [parameter.annotation] if one is not NoneType)
    return kind  # type: ignore[no-any-return] # by the signatures of our flows


def _title(parameter: inspect.Parameter) -> str:
    kind = _kind(parameter)
    return kind.form_title if issubclass(kind, RunParams) else TITLES[parameter.name]


def _titled(parameter: inspect.Parameter) -> inspect.Parameter:
    default = ... if parameter.default is parameter.empty else parameter.default
    field = Field(default, json_schema_extra={"title": _title(parameter)})
    kind: Any = _kind(parameter)
    if parameter.default is None:
        kind = Annotated[kind, _SavedOrNull()]
    return parameter.replace(annotation=kind, default=field)


_SAVED = "a saved block, because Prefect would store its secret in clear"
_REFERENCE: JsonDict = {"type": "object", "propertyNames": {"const": "$ref"}}


def _has_secret(kind: type[BaseModel], given: Mapping[str, object]) -> bool:
    """Whether the values of a block contain what Prefect must not store, or the block needs such a value."""
    secrets = {*kind.model_json_schema()["secret_fields"]}
    needed = {name for name, field in kind.model_fields.items() if field.is_required()}
    texts = (value for value in given.values() if isinstance(value, str))
    return bool(secrets & ({*given} | needed)) or not all(
        re.search(ADDRESS_WITHOUT_SECRETS, text) for text in texts
    )


def _without_secret(block: JsonSchemaValue) -> JsonDict:
    """Return the schema of the values of a block for which `_has_secret` is false."""
    secrets = {*block["secret_fields"]}
    if secrets & {*block["required"]}:
        return _REFERENCE
    return {
        "type": "object",
        "propertyNames": {"enum": sorted({*block["properties"]} - secrets)},
        "required": block["required"],
        "patternProperties": {"": {"pattern": ADDRESS_WITHOUT_SECRETS}},
    }


class _SavedOrNull:
    """Lets a reference to a saved block or null be valid, and the values of a block only without a secret.

    There is no choice of types, which a form would show instead of the list of blocks.
    """

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Change the definition of a block, whose fields are filled in on its own page only."""
        schema = handler(core_schema)
        block = handler.resolve_ref_schema(schema)
        allowed: JsonDict = {"anyOf": [{"type": "null"}, _REFERENCE, _without_secret(block)]}
        for name in ("type", "required"):
            block.pop(name, None)
        # Prefect's server adds references to the definition with this name, and its message then repeats the
        # value, which can be a token.
        block["title"] = block["block_type_slug"]
        block |= {"if": allowed, "else": {"const": _SAVED}}
        return schema


def _explain(error: ValidationError, expected: Mapping[str, inspect.Parameter]) -> str:
    """Return what is wrong with parameters, in one sentence that does not repeat their values."""
    reasons: list[str] = []
    for one in error.errors(include_input=False, include_url=False):
        parameter, name = expected[str(one["loc"][0])], str(one["loc"][1]) if one["loc"][1:] else ""
        field = _kind(parameter).model_fields.get(name)
        title = (field and field.title) or _title(parameter)
        text = one["msg"].removeprefix("Value error, ")
        text = f"{text[:1].lower()}{text[1:]}"
        if one["type"] == "extra_forbidden":
            reasons.append(f"there is no parameter {printable(name)}")
        elif one["type"] == "value_error" and field is None:
            reasons.append(text)
        elif one["type"] != "none_required":
            reasons.append(f"{title}: {text}")
    return "; ".join(dict.fromkeys(reasons))


def _explain_blocks(
    error: object, parameters: Mapping[str, object], expected: Mapping[str, inspect.Parameter]
) -> str:
    """Return which block of a run cannot be loaded, and what to do, in one sentence."""
    given = [name for name in TITLES if parameters.get(name) is not None]
    wrong = error.__cause__ if isinstance(error, Exception) else None
    for kind in (_kind(expected[name]) for name in given):
        # The page Blocks also saves values that a block does not accept.
        if isinstance(wrong, ValidationError) and wrong.title == kind.__name__:
            return f"{_wrong_fields(wrong, kind)}: correct it on the page Blocks, then start a new run"
    # An error of Prefect's repeats the id of the block.
    named = [name for name in given if any(one in str(error) for one in _ID.findall(str(parameters[name])))]
    kinds: Any = [_kind(expected[name]) for name in named or given]
    blocks = " and ".join(f"{kind._block_type_name} ({kind._block_type_slug})" for kind in kinds)
    settings = " and ".join(_SETTINGS[name] for name in named or given)
    return (
        f"the block {blocks} of this run cannot be loaded, perhaps because it was deleted: save it by"
        f" `imbrace-lake setup` with {settings}, or on the page Blocks, and choose it in the form, or for"
        " scheduled runs in the parameters of the deployment; then start a new run, because a retry needs the"
        " old block"
    )


def _wrong_fields(error: ValidationError, kind: Any) -> str:
    """Return which fields of a block are wrong, and why, without their values."""
    reasons = []
    for one in error.errors(include_input=False, include_url=False):
        field = kind.model_fields.get(one["loc"][0] if one["loc"] else "")
        text = one["msg"].removeprefix("Value error, ")
        reasons.append(f"{(field and field.title) or 'the block'}: {text[:1].lower()}{text[1:]}")
    block = f"{kind._block_type_name} ({kind._block_type_slug})"
    return f"the block {block} of this run cannot be used ({'; '.join(dict.fromkeys(reasons))})"


def _calm_end(record: logging.LogRecord) -> bool:
    """Log as information that a run was suspended, declined or cancelled, which Prefect logs as an error."""
    message = record.getMessage()
    if record.levelno == logging.ERROR and _CALM_END.match(message):
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
    return not message.startswith(_NO_END)


def _is_shown(record: logging.LogRecord) -> bool:
    return not (_validates_ours.get() and "\nParameters: " in record.getMessage())


@contextmanager
def _unrepeated() -> Iterator[None]:
    # Added once and never removed, because another thread may be in this block.
    logging.getLogger("prefect.flows").addFilter(_is_shown)
    token = _validates_ours.set(True)
    try:
        yield
    finally:
        _validates_ours.reset(token)
