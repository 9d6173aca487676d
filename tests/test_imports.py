"""What may import what, and what `import servelab` must not bring along."""

import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "asyncio", "IPython", "ipywidgets", "matplotlib", "pandas", "numpy"]


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


@pytest.mark.parametrize("heavy", HEAVY)
def test_importing_servelab_is_light(heavy: str) -> None:
    assert heavy not in imported_by("import servelab")


def test_the_core_never_imports_the_lab() -> None:
    assert not [name for name in imported_by("import servelab") if name.startswith("servelab.lab")]


def test_the_models_never_import_the_engine_or_the_lab() -> None:
    loaded = imported_by("import servelab.model, servelab.models.causal_lm")
    assert not [name for name in loaded if name.startswith("servelab.lab")]
