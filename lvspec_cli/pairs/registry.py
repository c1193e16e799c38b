"""Pairs by name, from the shipped models.yaml and the user's own. Error messages name the wrong key."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from annotated_types import Ge, Gt, Le
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)

from lvspec_cli.errors import PairError, UsageError
from lvspec_cli.host import config_folder, state_folder
from lvspec_cli.pairs.calibration import PairCalibration, calibrated, calibration_file, read_calibration
from lvspec_cli.text_file import SETTINGS, read_file
from lvspec_cli.types import (
    MOST_PIXELS,
    MOST_TOKENS,
    Adaptation,
    DecodeSettings,
    Gamma,
    Looseness,
    Quantisation,
    RelevanceName,
    RuleSettings,
    read_gamma,
)

PACKAGE = Path(__file__).parents[1]
Parsed = TypeVar("Parsed", bound=BaseModel)
MTP = "mtp"  # multi-token prediction: in place of a draft's name
AUTO = "auto"  # in place of a pair's name: the best pair on this machine that fits
BUNDLED = "demo"
FOLDER = ("/", "./", "../", "~")  # how a path begins that stands in place of a repository
_DEPTH, _NODES = 32, 100_000  # limits of a YAML file
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]


class Section(BaseModel):
    """A mapping of models.yaml. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Section):
    """The location of one model: exactly one of ``repo``, ``folder``, ``bundled`` and ``mtp``.

    A ``repo`` in the form of a path (``/…``, ``./…``, ``../…``, ``~…``) is taken as a folder.
    ``mtp`` is for a draft only: the prediction layer in the target's own files (``models.mtp``).
    """

    repo: str | None = None
    revision: str | None = None
    folder: Path | None = None
    bundled: Path | None = None
    mtp: bool = False
    vocabulary: Annotated[int, Ge(256)] | None = None  # of a draft: it proposes only ids below
    parameters: str | None = None  # text for the list of pairs, such as 7.6B
    size: str | None = None  # of the weight files, such as 15.2 GB

    @model_validator(mode="before")
    @classmethod
    def _folder_as_repo(cls, values: Any) -> Any:
        repo = values.get("repo") if isinstance(values, dict) else None
        if isinstance(repo, str) and repo.startswith(FOLDER) and "folder" not in values:
            return {name: value for name, value in values.items() if name != "repo"} | {"folder": repo}
        return values

    @field_validator("repo")
    @classmethod
    def _hub_id(cls, repo: str | None) -> str | None:
        if repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise ValueError(f"{repo!r} is no hub id, owner/name, and no path that begins with / or .")
        return repo

    @field_validator("folder", "bundled")
    @classmethod
    def _path(cls, path: Path | None) -> Path | None:
        """``~`` is the home folder. Paths that no system allows are errors here, not when they are opened."""
        raw = b"" if path is None else os.fsencode(path)
        if b"\0" in raw or len(raw) >= 4096 or any(len(part) > 255 for part in raw.split(b"/")):
            raise ValueError("is too long for a path, or has a NUL")
        try:
            return path and path.expanduser()
        except RuntimeError:
            raise ValueError(f"there is no home folder for {path}") from None

    @model_validator(mode="after")
    def _exactly_one_location(self) -> Self:
        if [self.repo, self.folder, self.bundled, self.mtp or None].count(None) != 3:
            raise ValueError(
                "needs exactly one of repo, folder and bundled; a draft may have mtp: true instead"
            )
        if self.revision is not None and self.repo is None:
            raise ValueError("revision goes with repo only")
        if self.vocabulary is not None and self.mtp:
            raise ValueError("vocabulary goes with a draft of its own: mtp has the target's head")
        return self

    @property
    def name(self) -> str:
        return MTP if self.mtp else self.repo or str(self.folder or self.bundled)

    @property
    def label(self) -> str:
        """The name with the revision, if one is named."""
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def path(self) -> Path | None:
        """The local folder; None for a repository on the hub and for a part of the target."""
        return PACKAGE / self.bundled if self.bundled else self.folder


class Defaults(Section):
    """Values for flags that are not given."""

    frames: Annotated[int, Ge(1), Le(2048)] | None = None
    fps: Annotated[float, Gt(0), Le(240)] | None = None
    max_pixels: Annotated[int, Ge(784), Le(MOST_PIXELS)] | None = None
    gamma: Annotated[Gamma, PlainValidator(read_gamma)] = "auto"
    adaptation: Adaptation = Adaptation()  # parameters of gamma auto
    fallback: bool = True  # continue without the draft if that is faster
    max_new_tokens: Annotated[int, Ge(1), Le(MOST_TOKENS)] = 256
    draft_frames: Annotated[int, Ge(1), Le(2048)] | None = None  # the most that the draft is shown
    draft_pixels: Annotated[int, Ge(784), Le(MOST_PIXELS)] | None = None


Percentile = Annotated[float, Ge(0), Le(100)]


class MarginPercentiles(Section):
    """A rule's margins as percentiles of the gaps at which the pair's draft differs."""

    anchor: Percentile | None = None
    filler: Percentile | None = None


class Percentiles(Section):
    """Margins that take effect once the pair is calibrated."""

    balanced: MarginPercentiles = MarginPercentiles()
    loose: MarginPercentiles = MarginPercentiles()


class Rules(Section):
    """The settings of the rule for each looseness, except strict, which is exact mode."""

    balanced: RuleSettings = RuleSettings()
    loose: RuleSettings = RuleSettings(filler_margin=inf, max_loose_run=6, max_loose_in_window=9)
    percentiles: Percentiles = Percentiles()

    def calibrated(self, found: PairCalibration) -> Rules:
        """The rules with what was measured of the pair in the place of fixed numbers."""
        return self.model_copy(
            update={
                name: calibrated(getattr(self, name), found, anchor=margins.anchor, filler=margins.filler)
                for name, margins in (
                    ("balanced", self.percentiles.balanced),
                    ("loose", self.percentiles.loose),
                )
            }
        )


# As far as LVSpec's paper tells its rule (arXiv 2604.05650): the 70 % of a proposal that are least like the
# video are accepted, whatever the target says; the others must match, or be shifted. Proposals of 10 tokens.
PAPER_RULE = RuleSettings(
    relevance=RelevanceName.PAPER,
    anchor_threshold=0.7,
    anchor_margin=0.0,
    filler_margin=inf,
    sentence_margin=inf,
    max_loose_run=MOST_TOKENS,
    max_loose_in_window=MOST_TOKENS,
)
PAPER_GAMMA = 10


class Pair(Section):
    """One entry of models.yaml."""

    about: str = ""
    world: str | None = None  # the only kind of videos that the pair knows, if it is limited
    licence: str | None = None
    no_gain: str | None = None  # why it is not faster than its target alone; auto never takes such a pair
    target: Source
    draft: Source
    memory: dict[Quantisation, Annotated[float, Gt(0), Le(1e6)]] = {}  # GB for both models on one device
    defaults: Defaults = Defaults()
    rules: Rules = Rules()
    # Words that must not replace each other: between two commas are synonyms, `small little, big large`.
    contraries: tuple[str, ...] = ()

    @field_validator("target")
    @classmethod
    def _target_is_a_model(cls, target: Source) -> Source:
        if target.mtp:
            raise ValueError("mtp is for a draft: the target needs repo or folder")
        if target.vocabulary is not None:
            raise ValueError("vocabulary is for a draft: the target says all that it knows")
        return target

    def with_mtp(self) -> Pair:
        """The pair with the target's own prediction layer as its draft. Costs measured with another draft do
        not hold for it."""
        if self.draft.mtp:
            return self
        adaptation = replace(self.defaults.adaptation, costs=None)
        of_models = {"draft_frames": None, "draft_pixels": None}  # a prediction layer reads all
        defaults = self.defaults.model_copy(update={"adaptation": adaptation, **of_models})
        return self.model_copy(update={"draft": Source(mtp=True), "defaults": defaults})


class ModelsFile(Section):
    """A whole models.yaml."""

    default: Name | None = None
    pairs: dict[Name, Pair] = {}

    @field_validator("pairs")
    @classmethod
    def _auto_is_no_pair(cls, pairs: dict[Name, Pair]) -> dict[Name, Pair]:
        if AUTO in pairs:
            raise ValueError(f"{AUTO} cannot be a pair's name")
        return pairs


@dataclass(frozen=True)
class Registry:
    """All known pairs, and the name of the default one, which may be ``auto`` (``memory.choose``): then the
    order of the pairs is that of preference.
    """

    pairs: Mapping[str, Pair]
    default: str

    def with_mtp(self) -> Registry:
        """The same pairs, each with its target's own prediction layer as its draft."""
        return replace(self, pairs={name: pair.with_mtp() for name, pair in self.pairs.items()})

    def pair(self, name: str | None) -> tuple[str, Pair]:
        """The pair with that name, or the default one. For ``auto``: the bundled pair.

        :raises PairError: there is no such pair.
        """
        name = name or self.default
        name = BUNDLED if name == AUTO else name
        if name not in self.pairs:
            raise PairError(
                f"there is no pair named {name!r}", f"{self._guess(name)}`lvspec models` lists them"
            )
        return name, self.pairs[name]

    def _guess(self, name: str) -> str:
        near = [pair for pair in self.pairs if name.lower() in pair]
        near = near or get_close_matches(name.lower(), self.pairs)
        return f"did you mean {', '.join(near[:3])}? " if near else ""


def load_registry(models: Path | None = None, environment: Mapping[str, str] = os.environ) -> Registry:
    """The user's pairs, from ``models``, else LVSPEC_MODELS, else the user's own file; then the shipped ones.

    :raises UsageError: a named file is missing, or a file is not valid.
    """
    shipped = read_models_file(shipped_models())
    variable = environment.get("LVSPEC_MODELS")
    named = models or (Path(variable) if variable else None)
    if named is not None and str(named) == variable and not named.exists():
        raise UsageError(f"LVSPEC_MODELS: {named}: no such file", "unset it, or name a models.yaml")
    own = user_models(environment)
    read = named or (own if own and own.is_file() else None)
    users = read_models_file(read) if read else ModelsFile()
    others = {name: pair for name, pair in shipped.pairs.items() if name not in users.pairs}
    pairs = {
        name: _with_measurement(name, pair, environment) for name, pair in {**users.pairs, **others}.items()
    }
    registry = Registry(pairs, users.default or shipped.default or AUTO)
    if registry.default not in (AUTO, *registry.pairs):
        raise UsageError(
            f"{read or shipped_models()}: default: there is no pair named {registry.default!r}",
            "name a pair of the file",
        )
    return registry


def _with_measurement(name: str, pair: Pair, environment: Mapping[str, str]) -> Pair:
    found = calibration_of(name, pair, environment)
    return pair.model_copy(update={"rules": pair.rules.calibrated(found)}) if found else pair


def calibration_of(
    name: str, pair: Pair, environment: Mapping[str, str] = os.environ
) -> PairCalibration | None:
    """What ``lvspec tune --calibrate`` has measured of a pair; None if it has not."""
    state = state_folder(environment)
    if state is None:
        return None
    return read_calibration(calibration_file(state, name), pair.target.label, pair.draft.label)


def shipped_models() -> Path:
    """models.yaml inside the installed package, or beside it in a checkout."""
    inside = PACKAGE / "models.yaml"
    return inside if inside.is_file() else PACKAGE.parent / "models.yaml"


def user_models(environment: Mapping[str, str]) -> Path | None:
    """The path of the user's own models.yaml; it need not exist."""
    folder = config_folder(environment)
    return folder and folder / "models.yaml"


def read_models_file(path: Path) -> ModelsFile:
    """Reads and checks one models.yaml. Relative folders are resolved against the file's folder.

    :raises UsageError: the file is not valid; the cause names the file, the line and the key.
    """
    parsed = read_yaml(path, ModelsFile, "a models.yaml", "the shipped models.yaml shows the form")
    return parsed.model_copy(
        update={"pairs": {name: _resolved(pair, path.parent) for name, pair in parsed.pairs.items()}}
    )


def with_pair(text: str, name: str, target: str, draft: str, path: Path) -> str:
    """The text of a models.yaml with one more pair, before the others. All of its lines stay as they are.

    :param target: a repository of the hub, or a folder, which is written with its whole path.
    :param draft: the same, or ``mtp``.
    :param path: of the file, for messages and for the folders in it.
    :raises UsageError: the file or the pair is not valid, or the file has a pair of that name.
    """
    form = "a models.yaml", "the shipped models.yaml shows the form"
    if text.strip() and name in parse_yaml(text, path, ModelsFile, *form).pairs:
        raise UsageError(f"{path}: there is a pair named {name!r} already", "take another name")
    written = name if yaml.safe_load(name) == name else json.dumps(name)
    entry = [f"{written}:", f"  target: {_written(target)}", f"  draft: {_written(draft)}"]
    lines = text.splitlines()
    key, pairs = next(
        ((key, value) for key, value in _items(yaml.compose(text, yaml.CSafeLoader)) if key.value == "pairs"),
        (None, None),
    )
    if key is None or pairs is None:
        lines.append("pairs:")
        index, indent = len(lines), 2
    elif pairs.start_mark.line > key.end_mark.line:
        index, indent = key.end_mark.line + 1, pairs.start_mark.column
    else:
        raise UsageError(f"{path}: pairs stand in one line", "write each in lines of its own")
    lines[index:index] = [" " * indent + line for line in entry]
    changed = "\n".join(lines) + "\n"
    parse_yaml(changed, path, ModelsFile, *form)
    return changed


def _written(source: str) -> str:
    """The mapping of a source in YAML."""
    if source == MTP:
        return "{mtp: true}"
    if source.startswith(FOLDER):
        return f"{{folder: {json.dumps(str(Path(source).expanduser().absolute()), ensure_ascii=False)}}}"
    return f"{{repo: {json.dumps(source, ensure_ascii=False)}}}"


def read_yaml(path: Path, model: type[Parsed], what: str, remedy: str) -> Parsed:
    """Reads and checks a YAML file. An empty file is an empty mapping.

    :param what: the kind of file, for the remedy if it cannot be read; ``remedy`` is for invalid values.
    :raises UsageError: the file is not valid; the cause names the file, the line and the key.
    """
    try:
        text = read_file(path, SETTINGS).decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", f"name {what} that can be read") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text", "save it as UTF-8") from error
    return parse_yaml(text, path, model, what, remedy)


def parse_yaml(text: str, path: Path, model: type[Parsed], what: str, remedy: str) -> Parsed:
    """As ``read_yaml``, for the text of a file."""
    node: yaml.Node | None = None
    try:
        _check_depth(text, path)
        loader = yaml.CSafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _check_keys(node, path, [0])
        return model.model_validate(loader.construct_document(node) if node else {})
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{_line_of(path, mark)}: {problem}", "fix the YAML") from error
    except ValidationError as error:
        raise UsageError(_explain(error, node, path), remedy) from error
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # The library raises these for an invalid date, for example, or a number with thousands of digits.
        raise UsageError(f"{path}: {error}", "put text in quotes") from error


def rule_of(pair: Pair, looseness: Looseness) -> RuleSettings:
    """The pair's rule for a looseness.

    Strict has no margin and no shift, which is exact mode. Paper is the same rule for every pair.
    """
    if looseness is Looseness.PAPER:
        return PAPER_RULE
    if looseness is Looseness.STRICT:
        return replace(pair.rules.balanced, anchor_margin=0.0, filler_margin=0.0, shift_window=0)
    return pair.rules.loose if looseness is Looseness.LOOSE else pair.rules.balanced


def settings_of_pair(pair: Pair, looseness: Looseness = Looseness.BALANCED) -> DecodeSettings:
    """The pair's default decoding settings."""
    defaults = pair.defaults
    return DecodeSettings(
        gamma=PAPER_GAMMA if looseness is Looseness.PAPER else defaults.gamma,
        adaptation=defaults.adaptation,
        fallback=defaults.fallback,
        rule=rule_of(pair, looseness),
        max_new_tokens=defaults.max_new_tokens,
        draft_frames=defaults.draft_frames,
        draft_pixels=defaults.draft_pixels,
    )


def _resolved(pair: Pair, base: Path) -> Pair:
    """The pair with its folders relative to ``base``."""

    def resolved(source: Source) -> Source:
        if source.folder is None:
            return source
        return source.model_copy(update={"folder": base / source.folder})

    return pair.model_copy(update={"target": resolved(pair.target), "draft": resolved(pair.draft)})


def _line_of(path: Path, mark: Any) -> str:
    return f"{path}, line {mark.line + 1}" if mark else str(path)


def _explain(error: ValidationError, node: yaml.Node | None, path: Path) -> str:
    first = error.errors(include_url=False)[0]
    keys = [str(key) for key in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message = "there is no such key"
    elif first["type"] == "missing":
        message = "is missing"
    return f"{_line_of(path, _mark(node, keys))}: {'.'.join(keys) or 'the file'}: {message}"


def _mark(node: yaml.Node | None, keys: list[str]) -> Any:
    """The position of the value under ``keys``, or of the nearest mapping around it."""
    mark = node.start_mark if node else None
    for key in keys:
        item = next((item for item in _items(node) if item[0].value == key), None)
        if item is None:
            break
        mark, node = item[0].start_mark, item[1]
    return mark


def _items(node: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from node.value


def _check_depth(text: str, path: Path) -> None:
    """Checks the depth before nodes are built, which the library does recursively without a limit."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEPTH:
            raise UsageError(f"{_line_of(path, event.start_mark)}: nested too deep", "fix the YAML")


def _check_keys(node: yaml.Node, path: Path, visits: list[int], depth: int = 0) -> None:
    """Checks that no mapping has a key twice.

    ``visits`` holds one number, the nodes visited so far; a node counts again for each alias to it.
    """
    visits[0] += 1
    if visits[0] > _NODES or depth > _DEPTH:
        what = "aliases repeat too much, or themselves"
        raise UsageError(f"{_line_of(path, node.start_mark)}: {what}", "write it out, without & and *")
    for part in node.value if isinstance(node, yaml.SequenceNode) else ():
        _check_keys(part, path, visits, depth + 1)
    names = set()
    for key, value in _items(node):
        name = str(key.value)
        if name in names:
            raise UsageError(
                f"{_line_of(path, key.start_mark)}: {name}: stands there twice", "keep one of them"
            )
        names.add(name)
        _check_keys(value, path, visits, depth + 1)
