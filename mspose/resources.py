"""Where the files are that come with the package: data-set cards, experiments, published results.

In a checkout they are the folders `datasets/` and `experiments/` beside the package; an installed
package holds them itself. A file of the same name in the current folder goes before them.
"""

from pathlib import Path

from mspose.errors import MsposeError

PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "experiments").is_dir()
BUNDLED = PACKAGE if INSTALLED else PACKAGE.parent
"""The folder that holds the bundled `datasets/` and `experiments/`."""
CARDS = "datasets"
EXPERIMENTS = "experiments"
ABLATIONS = "experiments/ablations"


def bundled_file(name: str) -> Path:
    """Return the file `name`, such as `experiments/published.csv`: here, or else the package's."""
    here = Path.cwd() / name
    return here if here.is_file() else BUNDLED / name


def named_files(folder: str) -> dict[str, Path]:
    """Name -> YAML file of everything in `folder`, one of `CARDS`, `EXPERIMENTS` and `ABLATIONS`:
    those of the current folder, then the bundled ones of other names.
    """
    files: dict[str, Path] = {}
    for place in (Path.cwd() / folder, BUNDLED / folder):
        for path in sorted(place.glob("*.yaml")):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))


def find_file(folder: str, name_or_path: str | Path, what: str, beside: Path = Path()) -> Path:
    """The YAML file of a name in `folder`, here or of the package, or of a path.

    A word with a slash or the ending of YAML is a path, relative to `beside`; one below
    `datasets/` or `experiments/` that is not there is looked up in the package.

    Raises MsposeError, with the names that exist, where there is none.
    """
    text = str(name_or_path)
    if "/" in text or text.endswith((".yaml", ".yml")):
        path = beside / Path(text).expanduser()
        if not path.is_file() and text.startswith((f"{CARDS}/", f"{EXPERIMENTS}/")):
            path = BUNDLED / text
        if not path.is_file():
            raise MsposeError(f"no such {what}: {(beside / Path(text).expanduser()).absolute()}")
        return path
    known = named_files(folder)
    if text not in known:
        raise MsposeError(
            f"there is no {what} {text!r}; there are: {', '.join(known) or 'none'}; or give the"
            " path of a file of your own"
        )
    return known[text]


def experiment_file(name_or_path: str | Path) -> Path:
    """The file of an experiment, from its path or its name: `virtual` is `experiments/virtual.yaml`
    or `virtual.yaml` here, or else the package's.
    """
    name = str(name_or_path)
    for path in (Path(name), Path(EXPERIMENTS, f"{name}.yaml"), Path(f"{name}.yaml")):
        if path.is_file():
            return path
    return find_file(EXPERIMENTS, name, "experiment")


def data_folder(card: Path) -> Path:
    """The folder that the data of a card lies in by default: beside the card, or, for the cards of
    an installed package, `datasets/` below the current folder.
    """
    return Path.cwd() / CARDS if INSTALLED and card.parent == BUNDLED / CARDS else card.parent
