"""The design as a test: floors, nevers, sizes, one file per drafter and family. It reads the sources, and runs none."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2] / "src" / "paceline"

# Bottom first. A module is on the floor of the first part of its name; modules directly in the package that are not
# named here are the ground. Imports go down, or stay within one package.
FLOORS = [
    {"ground"},
    {"kernels"},
    {"noise"},
    {"sampling"},
    {"layers"},
    {"models"},
    {"parallel", "checkpoint"},
    {"cache"},
    {"runtime"},
    {"spec"},
    {"drafters"},
    {"engine"},
    {"llm", "loaded", "outputs"},
    {"serve", "train", "bench", "convert", "inspection"},
    {"compat"},
    {"cli"},
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
MAX_LINES, MAX_FUNCTION, LONG_FUNCTION, LONG_SHARE, MEDIAN_FUNCTION = 400, 40, 20, 0.05, 8


@dataclass(frozen=True)
class Import:
    """`target`: dotted module as written, with the imported name behind it where there is one."""

    target: str
    line: int


@cache
def sources() -> dict[str, ast.Module]:
    """Module name below paceline (`cache.pool`; a package's own file is the package's name) to its tree."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def imports(module: str) -> list[Import]:
    """All imports of a module, but those for type checkers only."""
    return list(_imports(sources()[module]))


def _imports(node: ast.AST) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (Import(f"{child.module}.{alias.name}", child.lineno) for alias in child.names)
        yield from _imports(child)


def own_targets(module: str) -> list[tuple[str, int]]:
    """The modules of ours that `module` imports, and where."""
    found = []
    for imported in imports(module):
        if imported.target.split(".")[0] == "paceline":
            name = imported.target.removeprefix("paceline").removeprefix(".")
            found.append((name if name in sources() else name.rpartition(".")[0], imported.line))
    return found


def floor(module: str) -> int:
    return FLOOR_OF.get(module.split(".")[0], 0)


def reached(module: str) -> set[str]:
    """All that is imported with `module`, directly or not."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        for target, _ in own_targets(todo.pop()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def in_package(*packages: str) -> list[str]:
    return [module for module in sources() if module.split(".")[0] in packages]


def functions() -> Iterator[tuple[str, int]]:
    """(module:name, lines of the body). Signatures do not count: that of a command is its table of flags."""
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                assert node.end_lineno is not None
                yield f"{module}:{node.name}", node.end_lineno - first.lineno + 1


@pytest.mark.parametrize("module", sources())
def test_imports_go_down(module: str) -> None:
    package = module.split(".")[0]
    for target, line in own_targets(module):
        same = package == target.split(".")[0] or floor(module) == floor(target) == 0
        lateral = {package, target} <= {"llm", "loaded", "outputs"}
        assert same or lateral or floor(target) < floor(module), (
            f"{module}, line {line}, imports {target} above or beside it"
        )


def test_there_is_no_cycle() -> None:
    """Not even within a package."""
    cyclic = [module for module in sources() if module in reached(module)]
    assert not cyclic


@pytest.mark.parametrize("module", in_package("layers", "models"))
def test_models_do_not_know_who_runs_them(module: str) -> None:
    forbidden = {"cache", "batch", "spec", "engine", "parallel", "request"}
    assert not {target for target in reached(module) if target.split(".")[0] in forbidden}


@pytest.mark.parametrize("module", in_package("engine"))
def test_the_engine_names_no_drafter_and_no_model(module: str) -> None:
    concrete = {"drafters": {"", "base"}, "models": set()}
    for target, line in own_targets(module):
        package, _, rest = target.partition(".")
        assert package not in concrete or rest in concrete[package], f"{module}, line {line}: {target}"
    names = {n.split(".")[-1] for n in in_package("drafters", "models") if "." in n} - {"base", "none", "several"}
    spoken = {node.value for node in ast.walk(sources()[module]) if isinstance(node, ast.Constant)}
    assert not names & {word for word in spoken if isinstance(word, str)}


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("triton", {"kernels.cuda"}),
        ("torch.distributed", {"parallel.mesh"}),
        ("llguidance", {"grammar"}),
        ("transformers", {"tokenizer", "bench.others"}),
        ("tokenizers", {"tokenizer", "tokenizer_training"}),
        ("pickle", set()),
    ],
)
def test_who_may_import_a_library(library: str, allowed: set[str]) -> None:
    users = {m for m in sources() for i in imports(m) if f"{i.target}.".startswith(f"{library}.")}
    assert users <= allowed


def test_serving_does_not_import_torch() -> None:
    """Not even through others; the engine process is another process, which is started and never imported."""
    for module in in_package("serve"):
        if module == "serve.engine_process":
            continue
        reaches = {module} | reached(module)
        assert "serve.engine_process" not in reaches, module
        users = [m for m in reaches for i in imports(m) if f"{i.target}.".startswith("torch.")]
        assert not users, f"{module} reaches {users}"


def test_only_serving_needs_its_libraries() -> None:
    """They are an extra; `cli.serve` asks whether they are there."""
    libraries = {"fastapi", "starlette", "pydantic", "pydantic_core", "uvicorn", "prometheus_client"}
    for module in set(sources()) - set(in_package("serve")) - {"cli.serve"}:
        assert not [i for i in imports(module) if i.target.split(".")[0] in libraries], module


def test_the_block_allocator_knows_no_torch() -> None:
    assert not [i for i in imports("cache.blocks") if f"{i.target}.".startswith("torch.")]


def test_no_code_of_a_checkpoint_is_ever_trusted() -> None:
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, module
            if isinstance(node, ast.keyword) and node.arg == "weights_only":
                assert isinstance(node.value, ast.Constant) and node.value.value is True, module


def test_a_drafter_is_one_file() -> None:
    """Every file but `base` and `several` has one class that proposes, under its name, and imports no other drafter."""
    drafters = [m for m in in_package("drafters") if m not in ("drafters", "drafters.base", "drafters.several")]
    assert drafters
    for module in drafters:
        proposing = [
            node
            for node in sources()[module].body
            if isinstance(node, ast.ClassDef) and any(getattr(part, "name", "") == "propose" for part in node.body)
        ]
        assert len(proposing) == 1, module
        assigned = [part for part in proposing[0].body if isinstance(part, ast.Assign)]
        named = [ast.unparse(part.value) for part in assigned if ast.unparse(part.targets[0]) == "name"]
        assert named == [repr(module.removeprefix("drafters.").replace("_", "-"))], module
        assert not {target for target, _ in own_targets(module)} & set(drafters), module


def declared_types(module: str) -> list[str]:
    """The names in MODEL_TYPES, a tuple or a mapping."""
    for node in sources()[module].body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "MODEL_TYPES" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            constants = [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
            return [value for value in constants if isinstance(value, str)]
    return []


def test_a_family_is_one_file() -> None:
    """No model_type in two files, and no family imports another."""
    families = {module: declared_types(module) for module in in_package("models") if declared_types(module)}
    assert len(families) >= 2
    types = [name for names in families.values() for name in names]
    assert "deepseek_v3" in types and len(types) == len(set(types))
    for module in families:
        assert not {target for target, _ in own_targets(module)} & families.keys(), module


@pytest.mark.parametrize("module", sources())
def test_files_are_short_and_finished(module: str) -> None:
    path = ROOT.joinpath(*module.split("."))
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)


def test_functions_are_short() -> None:
    found = list(functions())
    assert not [f"{name} ({length} lines)" for name, length in found if length > MAX_FUNCTION]
    long = [f"{name} ({length})" for name, length in found if length > LONG_FUNCTION]
    assert len(long) <= LONG_SHARE * len(found), long
    assert median(length for _, length in found) <= MEDIAN_FUNCTION


def test_the_rules_bite() -> None:
    """The helpers see what they should: a known import, a known transitive one, a known floor."""
    assert "request" in {target for target, _ in own_targets("engine.scheduler")}
    assert "errors" in reached("engine.scheduler")
    assert floor("engine.engine") > floor("drafters.base") > floor("request")
