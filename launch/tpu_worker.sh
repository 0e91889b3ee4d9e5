#!/usr/bin/env bash
# One TPU worker's side of tpu_vm.sh: keeps a command running when the connection is gone.
#
#   tpu_worker.sh install            make a Python 3.12 environment with this checkout in it
#   tpu_worker.sh start COMMAND...   start a command in the checkout, and return
#   tpu_worker.sh follow             show its output until it ends
#   tpu_worker.sh status             running | none | stopped | its exit code
#   tpu_worker.sh stop               send it SIGTERM: it saves and ends
#   -h                               this text
#
# Example:
#   tpu_worker.sh start emigm train --config configs/digits.py --workdir gs://BUCKET/digits

set -euo pipefail

CODE=$(cd "$(dirname "$0")/.." && pwd)
SELF=$CODE/launch/$(basename "$0")
ENVIRONMENT=$HOME/emigm_env
# log: output, log.old: that of the run before; pid, exit: of the command; stop: it was told to stop;
# lock: held while it runs, and let go by the system whatever ends it, a reboot included.
RUN=$HOME/emigm_run

running() { ! flock --nonblock "$RUN/lock" true; }

case ${1:-} in
  '' | -h | --help)
    awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
    if (($# == 0)); then exit 2; fi
    exit
    ;;
  install)
    # The image's own Python is older than we need. uv brings one.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python 3.12 "$ENVIRONMENT"
    python3 -m uv pip install --quiet --python "$ENVIRONMENT/bin/python" --editable "${CODE}[tpu,gcs]"
    exit
    ;;
esac

mkdir -p "$RUN"
case $1 in
  start)
    if (($# == 1)); then
      echo 'tpu_worker.sh: give a command to start' >&2
      exit 2
    fi
    if running; then
      echo 'tpu_worker.sh: a command is running here already' >&2
      exit 1
    fi
    rm -f "$RUN/exit" "$RUN/stop" "$RUN/pid"
    if [[ -f $RUN/log ]]; then mv -f "$RUN/log" "$RUN/log.old"; fi
    setsid nohup "$SELF" keep "${@:2}" > "$RUN/log" 2>&1 < /dev/null &
    until [[ -s $RUN/pid ]]; do sleep 0.05; done
    ;;
  keep) # used by start: runs the command and writes down how it ended
    exec 9> "$RUN/lock"
    flock 9
    trap : TERM HUP # a machine that goes down tells everybody: stay to see how the command ends
    cd "$CODE"
    code=0
    # shellcheck disable=SC2016 # for the inner shell, which becomes the command
    PATH=$ENVIRONMENT/bin:$PATH bash -c 'echo "$$" > "$0"; exec "$@"' "$RUN/pid" "${@:2}" 9>&- || code=$?
    echo "$code" > "$RUN/exit.new"
    mv "$RUN/exit.new" "$RUN/exit"
    ;;
  follow)
    if running; then
      tail --lines=100 --follow=name --pid="$(cat "$RUN/pid")" "$RUN/log"
      flock "$RUN/lock" true # until its end is written down
    elif [[ -f $RUN/log ]]; then
      tail --lines=100 "$RUN/log"
    fi | sed --unbuffered "s/^/[${HOSTNAME##*-w-}] /" # hosts are called t1v-...-w-NUMBER
    ;;
  status)
    if running; then
      echo running
    elif [[ ! -f $RUN/exit ]]; then
      echo none
    elif [[ -f $RUN/stop && $(cat "$RUN/exit") != 0 ]]; then
      echo stopped
    else
      cat "$RUN/exit"
    fi
    ;;
  stop)
    if running; then
      touch "$RUN/stop"
      kill -TERM "$(cat "$RUN/pid")"
    fi
    ;;
  *)
    echo "tpu_worker.sh: there is no '$1' (-h shows the usage)" >&2
    exit 2
    ;;
esac
