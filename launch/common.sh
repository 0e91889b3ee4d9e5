# shellcheck shell=bash
# What the launchers share; sourced, not run. slurm.sbatch has its own copy of the few lines it needs,
# because Slurm runs it from a spool folder.
# shellcheck disable=SC2034 # who sources this uses the variables

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) # the checkout
ME=$(basename "$0")
AGAIN=75 # what a command returns when it has saved and wants to be started again

DRY=''
WORDS=()   # arguments before --
COMMAND=() # arguments after --

# The comment at the head of a script is its usage, and the only copy of it.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

note() { echo "$ME: $*" >&2; }

# A mistake of the user: one line, exit code 2.
fail() {
  note "$*"
  exit 2
}

# fail_with CODE MESSAGE: something went wrong on the way.
fail_with() {
  note "${*:2}"
  exit "$1"
}

# Splits the arguments into DRY, WORDS and COMMAND.
parse() {
  if (($# == 0)); then
    usage
    exit 2
  fi
  while (($#)); do
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --dry-run) DRY=1 ;;
      --)
        shift
        COMMAND=("$@")
        if (($# == 0)); then fail 'there is no command after --'; fi
        return
        ;;
      -*) fail "unknown option $1 (a command to run goes after --; -h shows the usage)" ;;
      *) WORDS+=("$1") ;;
    esac
    shift
  done
}

# require NAME EXAMPLE: an environment variable that has no default.
require() {
  if [[ -z ${!1:-} ]]; then fail "$1 is not set: export $1=$2"; fi
}

# whole NAME LEAST: an environment variable that holds a whole number.
whole() {
  if ! [[ ${!1} =~ ^[0-9]{1,9}$ ]] || ((10#${!1} < $2)); then
    fail "$1 must be a whole number, at least $2: '${!1}'"
  fi
}

# one_of NAME VALUE...: an environment variable with a few possible values.
one_of() {
  local value
  for value in "${@:2}"; do
    if [[ ${!1} == "$value" ]]; then return; fi
  done
  fail "$1 must be one of ${*:2}: '${!1}'"
}

# Names of TPUs and workloads.
check_name() {
  if ! [[ $1 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]]; then
    fail "a name has up to 40 of a-z, 0-9 and -, and starts with a letter: '$1'"
  fi
}

# Machines come and go, so checkpoints must not live on them.
check_workdir() {
  local before='' word
  for word in "${COMMAND[@]}"; do
    if [[ $before == --workdir ]]; then word="--workdir=$word"; fi
    if [[ $word == --workdir=* && $word != --workdir=gs://* ]]; then
      fail "${word/=/ } is on a disk that goes with the machine: use a gs:// folder"
    fi
    before=$word
  done
}

# Prints words as a shell reads them, quoting those that need it.
quoted() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    if ! [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then word=\'${word//\'/$quote}\'; fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command; with --dry-run prints it instead.
call() {
  if [[ $DRY ]]; then quoted "$@"; else "$@"; fi
}

# needs PROGRAM WHERE: a program that must be there, unless nothing is run.
needs() {
  if [[ -z $DRY ]] && ! command -v "$1" > /dev/null; then fail "$1 is not installed: see $2"; fi
}
