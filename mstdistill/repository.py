"""Students in repositories of the Hugging Face Hub: fetched and put there, and one line where it doesn't work.

A token is handed on to the Hub's client and kept nowhere; what the client says is shown without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .errors import ConfigError, HubError, first_line

# What a student's folder holds, beside its weights: configs, vocabularies, the card. No pickles.
_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")
_WEIGHTS = ("model*.safetensors", "transformers/model.safetensors")
# Exported for other runtimes; `Student.from_pretrained` reads none of it.
_ARTEFACTS = ("onnx/*", "torch-export/*", "executorch/*", "export.md", "export.json")
# Packages that the Hub's client sends its requests with, one or another by its version.
_TRANSPORTS = ("httpx", "httpcore", "requests")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository(name: str) -> bool:
    """Whether a name has the form of one on the Hub, org/name."""
    return _NAME.fullmatch(name) is not None and not name.startswith(".")


def check_name(name: str) -> None:
    """The Hub's own rules for names.

    Raises:
        ConfigError: it would refuse this one.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if "/" not in name:
            raise ConfigError(f"{name!r} has no owner; a repository is named org/name")
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"{name!r} can't be a repository's name, org/name: {first_line(error)}") from None


def fetch(
    name: str, file: str, revision: str | None = None, token: str | None = None, local_files_only: bool = False,
    code: bool = False,
) -> Path:  # fmt: skip
    """A student's folder, downloaded or from the cache; nothing but what loading reads.

    Args:
        file: of the weights.
        revision: branch, tag or commit.
        code: also Python files, which come with some models.

    Raises:
        HubError: it can't be had.
    """
    from huggingface_hub import snapshot_download

    wanted = [*_FILES, file, "transformers/model.safetensors", *(["*.py"] if code else [])]
    with _asking(name, token, revision):
        found = snapshot_download(
            name, revision=revision, token=token, local_files_only=local_files_only, allow_patterns=wanted,
            ignore_patterns=list(_ARTEFACTS), library_name="mstdistill",
        )  # fmt: skip
    return Path(found)


def publish(
    folder: Path, card: str, name: str, private: bool | None = None, token: str | None = None,
    revision: str | None = None,
) -> str:  # fmt: skip
    """Put a student's folder into a repository, which is made where there is none; its address.

    Args:
        card: instead of the folder's own.
        private: of a new repository; None: as the owner's settings say.
        revision: a branch, made where there is none; None: main.

    Raises:
        HubError: the Hub refuses it, or can't be reached.
        ConfigError: a name or a card that it would refuse.
    """
    from huggingface_hub import HfApi, ModelCard, get_token

    check_name(name)
    token = _clean(token)
    if token is None and get_token() is None:
        raise HubError(f"{name}: there is no token; set HF_TOKEN, or log in once with: hf auth login")
    api = HfApi(token=token, library_name="mstdistill")
    with _asking(name, token, revision, writing=True), TemporaryDirectory() as place:
        try:
            ModelCard(card).validate()
        except ValueError as error:
            raise ConfigError(f"the Hub refuses the card of {name}: {' '.join(str(error).split())[:200]}") from None
        api.create_repo(name, private=private, exist_ok=True)
        if revision not in (None, "main"):
            api.create_branch(name, branch=str(revision), exist_ok=True)
        allowed = [*_FILES, *_WEIGHTS, *_ARTEFACTS, "*.py"]
        _link(folder, Path(place))
        (Path(place) / "README.md").write_text(card)
        done = api.upload_folder(repo_id=name, folder_path=place, revision=revision, allow_patterns=allowed,
                                 commit_message="A student of mstdistill")  # fmt: skip
    return str(done.repo_url)


def _link(folder: Path, place: Path) -> None:
    """The same files but the card under another name, without a copy."""
    for file in folder.rglob("*"):
        inside = file.relative_to(folder)
        if file.is_file() and str(inside) != "README.md" and not any(part.startswith(".") for part in inside.parts):
            (place / inside).parent.mkdir(parents=True, exist_ok=True)
            (place / inside).symlink_to(file.resolve())


def _clean(token: str | None) -> str | None:
    """A token without what copying puts around it; the transport's words for others would show it."""
    if token is None:
        return None
    token = token.strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise HubError("the token is empty or holds what no token holds; copy it anew from the Hub's settings")
    return token


@contextmanager
def _asking(name: str, token: str | None, revision: str | None, writing: bool = False) -> Iterator[None]:
    from huggingface_hub import constants, errors

    at = f"{name}@{revision}" if revision else name
    try:
        yield
    except (ConfigError, HubError):
        raise
    except errors.RevisionNotFoundError:
        raise HubError(f"{name} has no branch, tag or commit {revision!r}") from None
    except errors.GatedRepoError:
        raise HubError(f"{at} is gated; ask its owner for access on the Hub, then log in: hf auth login") from None
    except errors.HfHubHTTPError as error:
        raise HubError(f"{at}: {_refused(error.response.status_code, error, token, writing)}") from None
    except errors.LocalEntryNotFoundError as error:
        raise HubError(f"{at}: {_not_cached(error, token)}") from None
    except (errors.OfflineModeIsEnabled, errors.LocalTokenNotFoundError):
        raise HubError(f"{at}: HF_HUB_OFFLINE is set; unset it to reach the Hub") from None
    except Exception as error:  # the client's transport, and the file system below, have kinds of their own
        lost = isinstance(error, OSError) or type(error).__module__.startswith(_TRANSPORTS)
        why = f"the Hub can't be reached at {constants.ENDPOINT}" if lost else "the Hub's client fails"
        raise HubError(f"{at}: {why} ({type(error).__name__}: {_said(error, token)})") from None


def _refused(status: int, error: BaseException, token: str | None, writing: bool) -> str:
    """What an answer of the Hub means."""
    if status == 401 and "credentials" in str(error).lower():
        return "the Hub refuses the token; set HF_TOKEN to a valid one, or log in again with: hf auth login"
    if status in (401, 404) and not writing:
        return ("there is neither such a folder nor, for this token, such a repository on the Hub; check the name, or "
                "log in with: hf auth login")  # fmt: skip
    if status == 401:
        return "the Hub refuses the token; set HF_TOKEN to a valid one, or log in again with: hf auth login"
    if status == 403:
        return "the token may not write there; make one with write access to it in the Hub's settings"
    return f"the Hub answers {status} ({_said(error, token)})"


def _not_cached(error: BaseException, token: str | None) -> str:
    from huggingface_hub import constants, errors

    cause = error.__cause__
    if isinstance(cause, errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        return "it isn't whole in the cache, and HF_HUB_OFFLINE is set"
    if isinstance(cause, errors.HfHubHTTPError):
        return _refused(cause.response.status_code, cause, token, writing=False)
    if cause is None:
        return "it isn't whole in the cache, and local_files_only forbids to fetch it"
    return f"it isn't in the cache, and the Hub can't be reached at {constants.ENDPOINT} ({_said(cause, token)})"


def _said(error: BaseException, token: str | None) -> str:
    """Somebody else's words without any token."""
    from huggingface_hub import get_token

    text = first_line(error, most=1000)
    for secret in (token, get_token()):
        if secret:
            text = text.replace(secret, "***")
    return text[:160]
