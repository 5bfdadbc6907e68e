"""Models in Google Cloud Storage: copied to this machine whole, once for all its processes."""

from collections.abc import Sequence
from pathlib import Path

from bitnet_trainer import cloud
from bitnet_trainer.cloud import Cache, CloudError, Place
from bitnet_trainer.errors import ModelUnavailable
from bitnet_trainer.models.folder import check_model_folder

CACHE = Cache("BITNET_MODEL_CACHE", "models")


def local_copy(bucket: str, path: str) -> Path:
    """A copy of a model on this machine, as `cloud.local_copy` makes it.

    Args:
        bucket: its name.
        path: of a Hugging Face folder, or of one .gguf file, in the bucket; of the former the files in the
            folder itself are fetched, without those in folders below it.

    Returns:
        The folder, or the .gguf file; it is to be read only.

    Raises:
        ModelUnavailable: no such bucket, nothing there that is a model, no permission, no way to storage, or
            no room here.
    """
    place = Place(bucket, path.strip("/"), is_file=path.rstrip("/").endswith(".gguf"))

    def check(names: Sequence[str]) -> None:
        if not place.is_file:
            check_model_folder(str(place), str(place), names)

    try:
        return cloud.local_copy(place, CACHE, check)
    except CloudError as error:
        raise ModelUnavailable(str(error), transient=error.transient) from error
