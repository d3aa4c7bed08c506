"""Where this clone keeps its state, and the environment that makes every tool look there."""

import gc
import os
import secrets
import sys
from pathlib import Path


def clone_dir() -> Path:
    """The folder that this code was cloned into."""
    return Path(__file__).absolute().parent.parent


def home_dir() -> Path:
    """State of this clone: `GAUNTLET_HOME`, else `.gauntlet` in the clone. Not created here."""
    return Path(os.environ.get("GAUNTLET_HOME") or clone_dir() / ".gauntlet").absolute()


def environment(home: Path) -> dict[str, str]:
    """Variables that point ZenML, Prefect, MLflow and BentoML at `home` and turn telemetry off."""
    mlflow_database = f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"
    return {
        "GAUNTLET_HOME": str(home),
        "ZENML_CONFIG_PATH": str(home / "zenml"),
        "PREFECT_HOME": str(home / "prefect"),
        "BENTOML_HOME": str(home / "bentoml"),
        "MLFLOW_TRACKING_URI": mlflow_database,
        "MLFLOW_BACKEND_STORE_URI": mlflow_database,
        "MLFLOW_ARTIFACTS_DESTINATION": str(home / "mlflow" / "artifacts"),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(home / "mlflow" / "artifacts"),
        "ZENML_ANALYTICS_OPT_IN": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "BENTOML_DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
    }


def use_home() -> Path:
    """Give the tools of this process their homes, unless the user set their variables, and return ours.

    Call it before the first import of zenml, prefect, mlflow or bentoml: they read the environment once.
    """
    home = home_dir()
    home.mkdir(parents=True, exist_ok=True)
    for name, value in environment(home).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MPLCONFIGDIR", str(home / "matplotlib"))  # else its font cache goes to the user's home
    (home / "mlflow").mkdir(exist_ok=True)
    return home


def collect_seldom() -> None:
    """Have this process look for garbage seldom: what imports make stays, and looking is an eighth of a command."""
    gc.set_threshold(50_000, 20, 100)


def secret_key() -> bytes:
    """The key that pseudonyms are made with: `GAUNTLET_SECRET`, else a file that the first use writes."""
    if given := os.environ.get("GAUNTLET_SECRET"):
        return given.encode()
    path = home_dir() / "secret.key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"secret.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().encode()


def activate_script(clone: Path) -> str:
    """Shell text for `.venv/bin/activate`: exports `environment`, leaving what the user set himself.

    A variable that an earlier activation exported (another clone, say) is replaced. Where the user set
    `GAUNTLET_HOME`, the other homes lie in his.
    """
    lines = ["", "# --- gauntlet: the homes of this clone", "_gauntlet_export() {"]
    lines += [
        '    eval "_gauntlet_old=\\${$1-}"',
        '    case ":${GAUNTLET_EXPORTED-}:" in *":$1:"*) _gauntlet_old="" ;; esac',
        '    if [ -z "$_gauntlet_old" ]; then',
        '        export "$1=$2"',
        '        GAUNTLET_EXPORTED="${GAUNTLET_EXPORTED-}:$1"; export GAUNTLET_EXPORTED',
        "    fi",
        "}",
    ]
    values = {**environment(Path("$GAUNTLET_HOME")), "GAUNTLET_HOME": str(clone / ".gauntlet")}
    lines += [f'_gauntlet_export {name} "{value}"' for name, value in values.items()]
    lines += ['mkdir -p "$GAUNTLET_HOME/mlflow"', "unset -f _gauntlet_export; unset _gauntlet_old", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(activate_script(clone_dir()))
