"""`jgolf audit`: whether a score is what the challenge means by one, tried and not asserted."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import jax
from rich.text import Text

from jgolf import compiling, files
from jgolf.artifact.submission import ARTIFACT_NAME
from jgolf.audit.checks import print_checks
from jgolf.audit.run import Audit, Plan, against_claim, audit
from jgolf.audit.scorer import Audited
from jgolf.audit.sizes import Claim, read_claims, sizes
from jgolf.config import EvaluateConfig, resolved
from jgolf.data.documents import check_files
from jgolf.errors import EXIT_CHECK_FAILED, EXIT_OK, ArtifactError, JgolfError
from jgolf.evaluate.nats import scoring_model
from jgolf.evaluate.score import scorers_of
from jgolf.load import kind_of, load_model
from jgolf.progress import activity, counted, progress_bar, table_console
from jgolf.run_dir import ARTIFACT_FILE, AUDIT_FILE
from jgolf.verbs.scoring import (
    LEARN,
    SLIDE,
    Opened,
    ScoringOptions,
    at_least,
    check_options,
    opened,
    read_options,
    scorer_of,
)

SMALL_VOCABULARY = 2048
"""Tokens up to which every one of them is tried in a target's place without being asked for."""
TRIED_TOKENS = 16_384
"""Tokens that changed texts have, where the scorer does not learn."""
CONTEXTS, CHUNKS = 16, 4
"""Contexts that they have with adapted, and chunks with tuned."""
LEARNT_TOKENS = 262_144
"""Tokens that are scored and counted, where the scorer learns."""


@dataclass(frozen=True)
class AuditOptions(ScoringOptions):
    """Options of an audit. MODEL may be a submission's folder, too; of a run its artifact is audited."""

    max_tokens: int | None = None
    """Score and count the first tokens only; 0 for all. By default all, with tuned and adapted 262,144."""
    try_tokens: int = 0
    """Tokens, the first ones, of the text that is changed and scored again and again; 0 for 16,384, with adapted 16
    contexts, with tuned four chunks."""
    samples: int = 8
    """How often it is changed; of four times as many targets the probabilities of all tokens are looked at."""
    every_token: int | None = None
    """Short texts as whose last token every token of the vocabulary is tried; by default 1, and 0 for vocabularies of
    more than 2,048 tokens or scorers that learn."""
    documents: tuple[Path, ...] = ()
    """Files that the shards were packed from, .jsonl or .txt: their bytes are counted, and their tokens compared."""
    seed: int = 0
    """Seed of what is changed, and of what is looked at."""
    out: Path | None = None
    """File to write what was found to, as JSON; audit.json beside the model by default."""


def run_audit(argv: list[str], prog: str = "jgolf audit") -> int:
    """Parses the command line, tries everything and prints a table; returns the exit code.

    Raises:
      JgolfError: an option makes no sense, or the model or the text cannot be used.
    """
    description = (
        "Try whether a score needs no trust: no later token moves it, probabilities sum to one, nothing is learnt "
        "before it is scored, every token is scored once, and the bytes are those of text, artifact and code. The exit "
        f"status is 1 where a check fails. Examples: {prog} runs/demo; {prog} model.jgolf --tokenizer T.model --tokens "
        f"val_*.bin --stride 64; {prog} runs/demo --scorer adapted"
    )
    options, own = read_options(AuditOptions, argv, prog, description)
    options = _settled(options, own)
    model = Path(options.model)
    is_artifact = kind_of(model) == "jgolf"
    out = options.out or model.with_name(AUDIT_FILE.name)
    if not os.access(out.parent, os.W_OK):
        raise JgolfError(f"{out.parent}: cannot be written to, expected the folder for {out.name}: give --out FILE")
    if out.is_dir():
        raise JgolfError(f"--out {out}: a folder, expected the name of a file to write")
    compiling.keep_programs()
    loaded = load_model(options.model, options.config)
    claims = read_claims(model) if is_artifact else []
    what = opened(options, own, loaded, options.scorer)
    audited = audited_scorer(what, options)
    plan = _plan(what, options, audited)
    with activity("auditing") as say:
        show = progress_bar("every token of the vocabulary")
        found = audit(audited, what.text, what.tokenizer, plan, options.documents, say, show)
    for claim in claims:
        found = found.plus(against_claim(found, claim, _kind(what, options, own, claim), resolved(loaded.config.model)))
    if is_artifact:
        found = found.plus(*sizes(model, claims, options.adapted, options.hints))
    return _tell(found, what, plan, options, out)


run_audit.parse_and_call = lambda prog, argv: run_audit(argv, prog)


def _settled(options: AuditOptions, own: EvaluateConfig) -> AuditOptions:
    """The options with the artifact of a folder, checked; raises JgolfError before any work."""
    learns = options.scorer in LEARN
    most = (LEARNT_TOKENS if learns else 0) if options.max_tokens is None else options.max_tokens
    options = dataclasses.replace(options, max_tokens=most)
    check_options(options, own)
    every_token = options.every_token or 0
    at_least(
        ("--try-tokens", options.try_tokens, 0),
        ("--samples", options.samples, 2),
        ("--every-token", every_token, 0),
        ("--seed", options.seed, 0),
    )
    if options.documents:
        check_files(options.documents)
    model = Path(options.model)
    if not model.is_dir():
        return options
    for name in (ARTIFACT_FILE, ARTIFACT_NAME):
        if (model / name).is_file():
            return dataclasses.replace(options, model=str(model / name))
    raise ArtifactError(
        f"{model}: has neither {ARTIFACT_FILE} nor {ARTIFACT_NAME}, expected the folder of a run that was exported, or "
        "of a submission: jgolf export makes either"
    )


def audited_scorer(what: Opened, options: ScoringOptions) -> Audited:
    """The scorer as `jgolf evaluate` would run it, but that gradients are the same to the bit every time."""
    name, seq_len = what.scorer, what.seq_len
    model = dataclasses.replace(resolved(what.loaded.config.model), repeatable=True)
    params = jax.device_put(what.loaded.params)
    arguments = [seq_len]
    if name in SLIDE:
        arguments.append(what.stride)
    if name in LEARN:
        arguments.append(getattr(options, name))
    run, how = scorer_of(options, name), {} if name == "adapted" else {"batch_tokens": options.batch_tokens}
    if name == "tuned":
        how["within_documents"] = what.apart

    def score(text, **watch):
        return run(model, params, text, *arguments, **how, **watch)

    shortest = seq_len + 1
    if name == "adapted":
        shortest = 2 * options.adapted.chunk + 2
    elif name == "tuned":
        shortest = options.tuned.chunk_tokens + 2
    return Audited(
        name,
        score,
        scoring_model(model),
        learns=name in LEARN,
        reorders=name == "adapted",
        row=seq_len if name == "rows" else 1,
        shortest=shortest,
    )


def _plan(what: Opened, options: AuditOptions, audited: Audited) -> Plan:
    """How much is tried, by the options or by what the scorer costs."""
    tokens, every_token = TRIED_TOKENS, options.every_token
    if audited.name == "tuned":
        tokens = CHUNKS * options.tuned.chunk_tokens
    elif audited.name == "adapted":
        tokens = CONTEXTS * (options.adapted.context or what.seq_len)
    if every_token is None:
        every_token = int(audited.config.vocab_size <= SMALL_VOCABULARY and not audited.learns)
    return Plan(options.try_tokens or tokens, options.samples, every_token, options.seed)


def _kind(what: Opened, options: AuditOptions, own: EvaluateConfig, claim: Claim) -> str:
    """Which of the scores that are said was taken like this one; "" for none."""
    trained = what.loaded.config.train
    if what.seq_len != trained.seq_len or (claim.tokens is None and options.max_tokens):
        return ""
    if what.scorer == "adapted":
        same_hints = options.with_hints == claim.has_hints and options.hints == own.hints
        return "adapted" if same_hints and options.adapted == own.adapted else ""
    if options.with_hints:
        return ""
    standard, slid = (scorer.__name__ for scorer in scorers_of(trained.documents))
    same_stride = claim.stride in (None, what.stride)
    return {standard: "standard", slid: "sliding" if same_stride else ""}.get(what.scorer, "")


def _tell(found: Audit, what: Opened, plan: Plan, options: AuditOptions, out: Path) -> int:
    """Prints and writes what was found; returns the exit code."""
    model, settings = Path(options.model), getattr(options, what.scorer, None)
    score, stride = found.score, f", stride {what.stride}" if what.stride else ""
    hints = ", hints" if options.with_hints else ""
    how = f"{what.scorer}{hints}, {what.seq_len:,} tokens of context{stride}"
    title = f"{model.name}: {how}: {score.val_bpb:.6f} bits per byte"
    console = table_console()
    print_checks(console, found.checks, f"{title} of {score.tokens:,} tokens")
    said = {
        "model": model.name,
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "tokenizer_sha256": what.tokenizer.fingerprint,
        "seq_len": what.seq_len,
        "stride": what.stride,
        **dataclasses.asdict(plan),
        "device": jax.devices()[0].device_kind,
        **({"settings": dataclasses.asdict(settings)} if what.scorer in LEARN else {}),
        **({"hints": dataclasses.asdict(options.hints)} if options.with_hints else {}),
    }
    files.write_text(out, files.json_text(found.as_json(**said), indent=1) + "\n")
    failed = sum(check.passed is False for check in found.checks)
    untried = sum(check.passed is None for check in found.checks)
    made = f"{counted(len(found.checks) - untried, 'check')}, {failed} failed, {untried} not made; {out}"
    verdict = Text(f"the audit passed: {made}")
    if not found.passed:
        verdict = Text(f"the audit FAILED: {made}", style="bold red")
    console.print(verdict, soft_wrap=True)
    return EXIT_OK if found.passed else EXIT_CHECK_FAILED
