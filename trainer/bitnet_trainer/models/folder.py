"""What makes a folder a model, wherever it is."""

from collections.abc import Collection

from bitnet_trainer.errors import ModelUnavailable


def check_model_folder(folder: str, address: str, names: Collection[str]) -> None:
    """Raises ModelUnavailable where a folder at `address` holds the files `names` and they are no model."""
    if "config.json" in names:
        return
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    mend = (
        f"name the file itself: {address.rstrip('/')}/{ggufs[0]}"
        if ggufs
        else "name the folder that holds config.json and the safetensors, or a .gguf file"
    )
    raise ModelUnavailable(f"the folder {folder} has no config.json, so it is not a model; {mend}")
