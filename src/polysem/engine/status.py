"""Where every stage of a run folder stands, computed from fingerprints: no model is loaded, no torch imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from polysem.config import Study
from polysem.engine.sources import Pins, Settings, content_of
from polysem.engine.task import parts_of
from polysem.places import Places
from polysem.store.manifest import Manifest, StageInputs, StageStatus, State, compare
from polysem.store.run import RunFolder
from polysem.store.stages import ORDER, REGISTRY, StageName, has, inputs_of, order_of
from polysem.transfer.config import load_transfer


class Standing(NamedTuple):
    """A stage's status, and what it would be made from now."""

    status: StageStatus
    made_from: StageInputs


def study_status(study: Study, folder: Path, *, ignore_versions: bool = False) -> list[StageStatus]:
    """The state of every stage of `study` in `folder`, with the reason, in the order in which they run; then of what
    has been made beside them.

    Args:
        study: what is asked for; usually the folder's own study.toml.
        folder: the run folder.
        ignore_versions: do not count another version of a package as a change.

    Raises:
        StoreError: if a table of the plan cannot be read.
    """
    run = RunFolder(folder)
    if reason := run.foreign(study):
        return [StageStatus(stage, "foreign", reason) for stage in order_of(study)]
    return list(Standings(run, study, ignore_versions=ignore_versions).all().values())


def run_status(folder: Path, *, ignore_versions: bool = False) -> list[StageStatus]:
    """The same of a run folder and what it asks for itself, be it a study, a transfer study or both.

    Raises:
        StoreError: if the folder is no run folder.
        ConfigError: if what it asks for is not a study.
    """
    run = RunFolder.open(folder)
    study = run.study() if run.holds("study.toml") else None
    return list(Standings(run, study, ignore_versions=ignore_versions).all().values())


class Standings:
    """Looks at the stages of a run folder, each once."""

    def __init__(
        self, run: RunFolder, study: Study | None, *, ignore_versions: bool, places: Places | None = None
    ):
        self.run = run
        self.places = places or run.places()
        self.ignore_versions = ignore_versions
        self.known: dict[StageName, StageStatus] = {}
        self._settings: dict[str, Settings] = {"study.toml": study} if study else {}

    def settings(self, stage: StageName) -> Settings:
        """What the folder asks for. Raises StoreError or ConfigError where it does not, or not rightly."""
        file = REGISTRY[stage].settings
        if file not in self._settings:
            self._settings[file] = (
                self.run.study() if file == "study.toml" else load_transfer(self.run.root / file)
            )
        return self._settings[file]

    def all(self) -> dict[StageName, StageStatus]:
        """Every stage that is asked for or begun."""
        return {stage: self.status(stage) for stage in REGISTRY if self._is_meant(stage)}

    def status(self, stage: StageName) -> StageStatus:
        """Where a stage stands."""
        if stage not in self.known:
            self.look(stage)
        return self.known[stage]

    def look(self, stage: StageName, options: Mapping[str, Any] | None = None) -> Standing:
        """Where one stage stands.

        Args:
            stage: which.
            options: of its command; None takes those by which it was made.
        """
        manifest, damage = self.run.seen(stage)
        if options is None and manifest:
            options = manifest.made_from.parameters.get("options")
        made_from, unseen = self.inputs_now(stage, manifest, options)
        behind = [s for s in map(self.status, inputs_of(stage, self.settings(stage))) if s.state != "fresh"]
        if manifest is None:
            state, reason = ("stale", damage) if damage else self._unfinished(stage, made_from, behind)
        elif behind:
            state, reason = "stale", f"{behind[0].stage} is {behind[0].state}"
        else:
            state, reason = compare(self.run.root, manifest, made_from, ignore_versions=self.ignore_versions)
            if state == "fresh" and unseen:
                reason = f"as far as can be seen: {'; '.join(unseen)}"
        self.known[stage] = StageStatus(stage, state, reason)
        return Standing(self.known[stage], made_from)

    def inputs_now(
        self,
        stage: StageName,
        recorded: Manifest | None,
        options: Mapping[str, Any] | None,
        *,
        pins: Pins | None = None,
    ) -> tuple[StageInputs, list[str]]:
        """What a stage would be made from, and what of it could not be looked at.

        Args:
            stage: which.
            recorded: its manifest, whose sources are taken where a source is not here.
            options: of its command.
            pins: commits on the Hub; None takes those of the run folder.
        """
        inputs: dict[str, str] = {}
        settings = self.settings(stage)
        for name in (*inputs_of(stage, settings), *REGISTRY[stage].shows):
            manifest, _ = self.run.seen(name)
            inputs |= manifest.hashes if manifest else {}
        settled = pins or Pins.of(self.run.seen("features")[0])
        known = recorded.made_from.sources if recorded else None
        sources, unseen = content_of(settings, stage, places=self.places, pins=settled, recorded=known)
        return StageInputs.of(settings, stage, sources=sources, inputs=inputs, options=options), unseen

    def _is_meant(self, stage: StageName) -> bool:
        record = REGISTRY[stage]
        if record.settings not in self._settings and not self.run.holds(record.settings):
            return False
        begun = self.run.folder(stage).is_dir() and any(self.run.folder(stage).iterdir())
        return begun or (stage in ORDER and has(self.settings(stage), stage)) or stage == "transfer"

    def _unfinished(
        self, stage: StageName, made_from: StageInputs, behind: Sequence[StageStatus]
    ) -> tuple[State, str]:
        folder = self.run.folder(stage)
        if not folder.is_dir() or not any(folder.iterdir()):
            return "absent", "not begun"
        if behind:
            return "partial", f"begun, but {behind[0].stage} is not fresh"
        settings = self.settings(stage)
        parts = parts_of(settings, self.run, stage) if isinstance(settings, Study) else []
        good = sum(self.run.good_part(part, made_from) is not None for part in parts)
        return "partial", f"{good} of {len(parts)} parts" if parts else "begun"
