"""Signatures over a stored version or an exported folder, by a key that stays with its owner (OpenSSF model signing).

A signature is a Sigstore bundle: a DSSE envelope around an in-toto statement with the sha-256 of every file. What pmemx
signs, `model_signing verify key FOLDER --signature FOLDER/model.sig --public_key KEY` verifies without it; neither side
needs a network. Keys are PEM files on P-256, P-384 or P-521, as `openssl genpkey -algorithm EC -pkeyopt
ec_paramgen_curve:P-256` makes them. The password of a private key that has one stands in PMEMX_KEY_PASSWORD.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from pmemx.core.atomic import write_whole
from pmemx.core.errors import ConfigError, CorruptBlock, StorageError
from pmemx.core.extras import install

PASSWORD = "PMEMX_KEY_PASSWORD"
SIGNATURE = "model.sig"  # the name that the standard client gives it
MANIFEST, WEIGHTS = "manifest.json", "adapter_model.safetensors"  # a signed version seen as a folder
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_KEYS = "a PEM file with an elliptic-curve key on P-256, P-384 or P-521"


def sign_version(manifest: bytes, weights: bytes, private_key: Path) -> str:
    """The bundle for one version, JSON text; ECDSA draws, so two bundles for the same bytes differ.

    Raises ConfigError when the key cannot be used, or the extra `sign` is not installed, and StorageError when the disk
    refuses.
    """
    with _disk("a version"), _as_folder(manifest, weights) as folder:
        return _sign(folder, private_key)


def verify_version(manifest: bytes, weights: bytes, bundle: str, public_key: Path) -> None:
    """Raises CorruptBlock, which says what is wrong, unless the owner of the key signed just these bytes.

    Raises ConfigError when the key cannot be used, or the extra `sign` is not installed, and StorageError when the disk
    refuses.
    """
    with _disk("a version"), _as_folder(manifest, weights) as folder:
        _verify(folder, bundle.encode(errors="surrogatepass"), public_key, f"version {folder.name[:12]}")


def sign_export(folder: Path, private_key: Path) -> Path:
    """Sign every file under a folder but its own signature, which is written into it, or replaced; returns its path.

    The signature is over the folder as a whole: a folder inside that will travel alone needs one of its own, made before.
    Raises CorruptBlock when there is no file to sign, or a symbolic link or special file among them, and ConfigError
    and StorageError as sign_version does.
    """
    signature = folder / SIGNATURE
    with _disk(str(folder)):
        if not any(path.is_file() for path in folder.rglob("*") if path != signature):
            raise CorruptBlock(f"{folder} holds no file to sign; export to it first")
        write_whole(signature, _sign(folder, private_key).encode())
    return signature


def verify_export(folder: Path, public_key: Path) -> None:
    """Raises CorruptBlock when a file under the folder was edited, added, removed, renamed or made a link since signing.

    So it does when the signature is missing, or another key's or another folder's. Empty folders are no finding, and
    neither is a new name of the folder itself. Raises ConfigError and StorageError as verify_version does.
    """
    try:
        bundle = (folder / SIGNATURE).read_bytes()
    except OSError as error:
        raise CorruptBlock(
            f"{folder} has no {SIGNATURE} to read ({error}); fetch it again, with its signature"
        ) from error
    with _disk(str(folder)):
        _verify(folder, bundle, public_key, str(folder))


def key_id(public_key: Path) -> str:
    """The sha-256 of a public key's DER SubjectPublicKeyInfo, 64 hex digits: `openssl pkey -pubin -outform DER | sha256sum`.

    Raises ConfigError when the file holds no public key that could verify a signature, or the extra `sign` is missing.
    """
    _library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    try:
        key = load_pem_public_key(public_key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise _unusable(public_key, "public", error) from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise _unusable(public_key, "public", f"it is a {type(key).__name__} of another kind or curve")
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


@contextmanager
def _disk(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what} cannot be signed or verified, because the disk refuses ({error}); free space or change permissions"
        ) from error


@contextmanager
def _as_folder(manifest: bytes, weights: bytes) -> Iterator[Path]:
    # The library signs folders only; this one is its owner's alone, and gone afterwards. Its name goes into the statement,
    # where it tells a reader which version it is; the verdict does not rest on it.
    with TemporaryDirectory(prefix="pmemx-") as scratch:
        folder = Path(scratch) / sha256(manifest).hexdigest()
        folder.mkdir()
        (folder / MANIFEST).write_bytes(manifest)
        (folder / WEIGHTS).write_bytes(weights)
        yield folder


def _sign(folder: Path, private_key: Path) -> str:
    library = _library()
    from cryptography.exceptions import UnsupportedAlgorithm

    # Bytes, although the library's annotation says str: it hands the value on to cryptography, which refuses str.
    password = os.environ.get(PASSWORD, "").encode() or None
    try:
        config = library.signing.Config().use_elliptic_key_signer(private_key=private_key, password=password)
    except (OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise _unusable(private_key, "private", error) from error
    with TemporaryDirectory(prefix="pmemx-") as scratch:
        bundle = Path(scratch) / SIGNATURE
        try:
            config.set_hashing_config(_every_file(library)).sign(folder, bundle)
        except ValueError as error:
            raise CorruptBlock(f"{folder} cannot be signed: {error}; export to a new folder") from error
        return bundle.read_text(encoding="utf-8")


def _verify(folder: Path, bundle: bytes, public_key: Path, what: str) -> None:
    library = _library()
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, AttributeError, UnsupportedAlgorithm) as error:
        raise _unusable(public_key, "public", error) from error
    with TemporaryDirectory(prefix="pmemx-") as scratch:
        file = Path(scratch) / SIGNATURE
        file.write_bytes(bundle)
        try:
            config.set_hashing_config(_every_file(library)).verify(folder, file)
        except InvalidSignature as error:
            raise _forged(what, f"it was signed by another key than {public_key}, or edited afterwards") from error
        # What the library lets through when JSON is no bundle, or names another kind of key.
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise _forged(what, _short(error)) from error


def _every_file(library: ModuleType) -> Any:
    class EveryFile(library.hashing.Config):
        def add_ignored_paths(self, *, model_path: Any, paths: Any) -> None:
            """What a statement leaves out is not signed, so a file there is one too many."""

    return EveryFile().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _short(error: Exception) -> str:
    if type(error) is not ValueError:  # its own verdicts; the parsers that it calls raise kinds of their own
        return f"it is no bundle of the kind that pmemx writes ({type(error).__name__})"
    # Without the digests, which it prints as escaped bytes: the names of the files are what helps.
    text = re.sub(r": Expected .*?(?=[\"'], [\"']Hash mismatch for|[\"']\]$)", "", str(error).strip())
    return text.replace("\\'", "'")


def _forged(what: str, reason: str) -> CorruptBlock:
    return CorruptBlock(
        f"the signature does not hold for {what}: {reason}; do not use it, fetch it again or have its owner sign it"
    )


def _unusable(path: Path, kind: str, reason: object) -> ConfigError:
    password = f", and its password, if it has one, in {PASSWORD}" if kind == "private" else ""
    return ConfigError(f"{kind} key {path} cannot be used ({reason}); give {_KEYS}{password}")


def _library() -> ModuleType:
    # Not at the top: it takes 0.7 s and 17 packages, and most commands sign nothing.
    try:
        import model_signing
    except ImportError as error:
        raise ConfigError(f"signatures need an extra ({error}); run: {install('sign')}") from error
    return model_signing
