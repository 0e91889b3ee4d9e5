"""The launchers as tests run them: with recording fakes of the tools on PATH.

The fakes write down how they were called and answer what a case needs.
"""

import dataclasses
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
SCRIPTS = ['gke_xpk.sh', 'local.sh', 'slurm.sbatch', 'tpu_vm.sh', 'tpu_worker.sh']
FAKES = ['docker', 'gcloud', 'kubectl', 'nvidia-smi', 'sbatch', 'scontrol', 'squeue', 'srun', 'xpk']
TRAIN = ['emigm', 'train', '--config', 'configs/digits.py', '--workdir', 'gs://b/it s']
TRAIN_QUOTED = "emigm train --config configs/digits.py --workdir 'gs://b/it s'"

# Words of a call are separated by \x1f, calls by \x1e. A queue is a folder with a pattern of calls
# and answers (one file each: exit code, then output); the last one is given again and again.
FAKE = r"""#!/usr/bin/env bash
{ printf '%s' "${0##*/}"; printf '\x1f%s' "$@"; printf '\x1e'; } >> "$FAKES/calls"
for queue in "$FAKES"/queue*; do
  [[ -d $queue && "${0##*/} $*" == $(< "$queue/pattern") ]] || continue
  answers=("$queue"/answer*)
  { read -r code; text=$(cat); } < "${answers[0]}"
  if ((${#answers[@]} > 1)); then rm "${answers[0]}"; fi
  if ((code)); then printf '%s' "$text" >&2; else printf '%s' "$text"; fi
  exit "$code"
done
"""


@dataclasses.dataclass
class Run:
    """What a script returned and printed, and the calls it made."""

    code: int
    out: str
    err: str
    calls: list

    def commands(self):
        """The calls as lines, without the words that all calls of a case share."""
        shared = ('--zone=z', '--worker=all')
        return [' '.join(word for word in call if word not in shared) for call in self.calls]


class Desk:
    """A folder with fakes on PATH, on which scripts are run."""

    def __init__(self, folder):
        self.folder, self.queues = folder, 0
        (folder / 'bin').mkdir()
        for name in FAKES:
            fake = folder / 'bin' / name
            fake.write_text(FAKE)
            fake.chmod(0o755)
        keep = {'PATH': f'{folder}/bin:{os.environ["PATH"]}', 'HOME': str(folder)}
        self.environment = {**keep, 'FAKES': str(folder), 'TMPDIR': str(folder), 'POLL': '0'}

    def answer(self, pattern, *answers):
        """What calls that match `pattern` get: outputs, or (exit code, error) pairs."""
        queue = self.folder / f'queue{self.queues:02d}'
        self.queues += 1
        queue.mkdir()
        (queue / 'pattern').write_text(pattern)
        for i, answer in enumerate(answers):
            code, text = answer if isinstance(answer, tuple) else (0, answer)
            (queue / f'answer{i:02d}').write_text(f'{code}\n{text}')

    def run(self, script, *arguments, **environment):
        """Runs a script of launch/."""
        done = subprocess.run(
            [str(LAUNCH / script), *arguments],
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        log = self.folder / 'calls'
        calls = log.read_text().split('\x1e')[:-1] if log.exists() else []
        log.unlink(missing_ok=True)
        return Run(done.returncode, done.stdout, done.stderr, [c.split('\x1f') for c in calls])
