"""A submission to the challenge: a folder that holds the artifact, the code that scores it, what trained it, its story.

    model.jgolf  score.pyz  train_gpt.py                        what is counted
    jgolf.zip  config.json  requirements.txt                    what trains the model again
    train.log  result.json  train_seed42.log  result_seed42.json …   what the runs said
    submission.json  README.md                                  what all of it comes to, and what is missing
    audit.json                                                  what the artifact's audit found, where there was one

`python score.pyz --tokens SHARD… --tokenizer T.model` in that folder scores the artifact, with this package's
dependencies installed and the package itself not. Python runs a zip; this one holds what scoring needs of our source
files, compressed together. `python train_gpt.py --data DIR` trains, exports and scores, by the package in jgolf.zip.
"""

from __future__ import annotations

import dataclasses
import io
import lzma
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jgolf import config as configs
from jgolf import files
from jgolf.artifact.code import ADAPTING_MODULE, SCORING_MODULES, needed_code
from jgolf.artifact.missing import missing
from jgolf.artifact.seeds import SeedRun, best_scorer
from jgolf.artifact.story import Sizes, Submitter, readme, summary
from jgolf.config import AdaptedConfig, Config, DataConfig, HintsConfig
from jgolf.data.demo import DEMO_FOLDER
from jgolf.errors import JgolfError
from jgolf.run_dir import AUDIT_FILE, CONFIG_FILE, LOG_FILE, REQUIREMENTS_FILE

ARTIFACT_NAME = "model.jgolf"
SCORE_NAME = "score.pyz"
TRAIN_NAME = "train_gpt.py"
COUNTED = (ARTIFACT_NAME, SCORE_NAME, TRAIN_NAME)
"""Files whose bytes count."""
PACKAGE_NAME = "jgolf.zip"
SOURCES_NAME = "sources.tar.xz"
LZMA_OF_TEXT = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0}
_SCORE_TEXT = f'''"""Scores the artifact beside this zip: python {SCORE_NAME} --tokens SHARD... --tokenizer T.model"""

import io
import pkgutil
import sys
import tarfile
import tempfile
from pathlib import Path

archive = Path(sys.argv[0]).resolve()
with tempfile.TemporaryDirectory() as folder:
    with tarfile.open(fileobj=io.BytesIO(pkgutil.get_data(__name__, "{SOURCES_NAME}"))) as sources:
        sources.extraction_filter = getattr(tarfile, "data_filter", None)  # as newer Pythons have it
        sources.extractall(folder)
    sys.path.insert(0, folder)
    from MODULE import main

    status = main([str(archive.with_name("{ARTIFACT_NAME}")), *sys.argv[1:]]SETTINGS)
sys.exit(status)
'''
TRAIN_TEXT = f'''"""Trains the model anew, exports and scores it: python {TRAIN_NAME} --data DIR [--seed N]"""

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path

here = Path(__file__).resolve().parent
parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
parser.add_argument("--run-dir", default="run")
run, words = parser.parse_known_args()
with tempfile.TemporaryDirectory() as folder:
    with zipfile.ZipFile(here / "{PACKAGE_NAME}") as package:
        package.extractall(folder)
    sys.path.insert(0, folder)
    from jgolf.cli import main

    export = json.loads((here / "submission.json").read_bytes())["export"]
    status = main(["train", str(here / "{CONFIG_FILE}"), *words, "--run-dir", run.run_dir])
    status = status or main(["export", run.run_dir, *export])
sys.exit(status)
'''
_PATHS = re.compile(r"""(?<=--run-dir )\S+|(?<![^\s=:(\['"])(?:~|\.{1,2})?/[^\s'",;:)\]]+|'(?:~|\.{1,2})?/[^'\n]*'""")


@cache
def code(adapted: AdaptedConfig | None = None, hints: HintsConfig | None = None) -> bytes:
    """The code that scores, a zip that Python runs: the same bytes from the same sources.

    Args:
      adapted: settings of test-time training, where the artifact is scored with it, too.
      hints: settings of the hints that its predictions are tilted to, where they are.
    """
    module, settings = SCORING_MODULES[0], ""
    if adapted is not None:
        module = ADAPTING_MODULE
        settings = "".join(f", {configs.to_dict(one)!r}" for one in (adapted, hints) if one is not None)
    with io.BytesIO() as packed, io.BytesIO() as buffer:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, text in needed_code((module,)).items():
                entry = tarfile.TarInfo(name)  # of no date, and nobody's
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
        sources = lzma.compress(packed.getvalue(), check=lzma.CHECK_CRC32, filters=[LZMA_OF_TEXT])
        main_text = _SCORE_TEXT.replace("MODULE", module).replace("SETTINGS", settings)
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(zipfile.ZipInfo("__main__.py"), main_text, zipfile.ZIP_DEFLATED, compresslevel=9)
            archive.writestr(zipfile.ZipInfo(SOURCES_NAME), sources)
        return buffer.getvalue()


def code_bytes(adapted: AdaptedConfig | None = None, hints: HintsConfig | None = None) -> int:
    """Bytes of a submission's code, as the challenge counts them: of what scores, and of train_gpt.py. See `code`."""
    return len(code(adapted, hints)) + len(TRAIN_TEXT.encode())


@cache
def package() -> bytes:
    """All of this package's source and its configs, a zip that holds the folder jgolf: the same from the same files."""
    root = Path(__file__).resolve().parents[1]
    paths = {path.relative_to(root.parent): path for path in root.rglob("*.py")}
    paths |= {Path(root.name, "configs", path.name): path for path in configs.config_folder().glob("*.py")}
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in sorted(paths):
                entry = zipfile.ZipInfo(name.as_posix())  # of no date
                archive.writestr(entry, paths[name].read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)
        return buffer.getvalue()


def check(folder: Path, run_dir: Path, further: Sequence[Path]) -> None:
    """Checks, before any work, that a submission can be written.

    Args:
      folder: to be made.
      run_dir: the run whose artifact is submitted.
      further: runs of other seeds.

    Raises:
      JgolfError: `folder` holds something, a run cannot be read or is named twice, or has no log.
    """
    if folder.exists() and not folder.is_dir():
        raise JgolfError(f"{folder}: a file, expected a folder to make for the submission")
    if folder.is_dir() and any(folder.iterdir()):
        raise JgolfError(f"{folder}: not empty: choose another --submission folder, or remove this one")
    if not (run_dir / LOG_FILE).is_file():
        raise JgolfError(f"{run_dir}: has no {LOG_FILE}, which a submission needs: expected the folder of a run")
    seen = {run_dir.resolve()}
    for path in further:
        if path.resolve() in seen:
            raise JgolfError(f"--runs {path}: named twice; expected further runs, each once: the seeds are the sample")
        seen.add(path.resolve())
        SeedRun.read(path)


def write(
    folder: Path,
    submitter: Submitter,
    runs: Sequence[SeedRun],
    artifact: bytes,
    scoring: bytes,
    requirements: str,
) -> list[str]:
    """Writes the folder, whole or not at all.

    Args:
      folder: to be made; it may exist if it is empty.
      submitter: who and what.
      runs: the run that is submitted, which was exported, then those of further seeds.
      artifact: its packed model.
      scoring: the code that scores it, see `code`.
      requirements: the packages that are installed, for a run that did not keep its own.

    Returns:
      What is missing, or not as the challenge's rules ask: none if it is ready to submit.

    Raises:
      JgolfError: the folder cannot be written to.
    """
    scorer = best_scorer(runs)
    lacking = missing(submitter.author, submitter.name, runs, scorer)
    logs, results = _names("train", ".log", runs), _names("result", ".json", runs)
    told = (submitter, runs, logs, scorer, lacking)
    requirements = runs[0].requirements or requirements
    python = requirements.partition("\n")[0].removeprefix("# Python ")
    sizes = Sizes(len(scoring), len(TRAIN_TEXT.encode()), len(package()))
    contents = {
        ARTIFACT_NAME: artifact,
        SCORE_NAME: scoring,
        TRAIN_NAME: TRAIN_TEXT,
        PACKAGE_NAME: package(),
        CONFIG_FILE: configs.config_text(_without_data(runs[0].config)),
        REQUIREMENTS_FILE: requirements,
        **{log: without_folders(run.log) for log, run in zip(logs, runs, strict=True)},
        **{
            name: without_folders(files.json_text(run.result, indent=1) + "\n")
            for name, run in zip(results, runs, strict=True)
            if run.result is not None
        },
        **({AUDIT_FILE.name: runs[0].audit} if runs[0].audit else {}),
        "submission.json": files.json_text(summary(*told), indent=2, ascii_only=False) + "\n",
        "README.md": readme(*told, sizes, python),
    }
    with files.atomic_folder(folder) as temporary:
        for name, data in contents.items():
            files.write_bytes(
                temporary / name, data if isinstance(data, bytes) else data.encode(errors="surrogateescape")
            )
    return lacking


def _names(first: str, ending: str, runs: Sequence[SeedRun]) -> list[str]:
    """Names of the runs' files: the first one's has no seed in it, and those of one seed are numbered."""
    names, seeds = [f"{first}{ending}"], Counter()
    for run in runs[1:]:
        seeds[run.seed] += 1
        number = f"_{seeds[run.seed]}" if seeds[run.seed] > 1 else ""
        names.append(f"{first}_seed{run.seed}{number}{ending}")
    return names


def _without_data(config: Config) -> Config:
    """The settings without where the data lay; those of the demo, which can be built, lie where it is built."""
    data = DataConfig(str(DEMO_FOLDER), build_demo=True) if config.data.build_demo else DataConfig()
    return dataclasses.replace(config, data=data)


def without_folders(log: str) -> str:
    """The log with every path of its machine cut to its last name: folders are the submitter's own affair."""
    return _PATHS.sub(lambda found: found[0].strip("'").rstrip("/").rpartition("/")[2], log)
