#!/usr/bin/env bash
# Run N processes of one command on this machine, as the hosts of one run.
#
#   launch/local.sh N -- COMMAND    add --coordinator, --num-processes and --process-id to the command
#   --dry-run                       print the exact commands, run nothing
#   -h                              this text
#
# Examples:
#   DEVICES=4 launch/local.sh 2 -- emigm train --config configs/digits.py --workdir runs/digits
#   launch/local.sh 8 -- emigm train --config configs/imagenet256.py:size=b --workdir runs/b
#
# Each line of output begins with the number of its process. SIGTERM and SIGINT are passed on to all.
# When one process fails the others are ended, and its exit code is returned. Exit code 75 means
# "saved, start me again" (preempted, or lost another process): then all are started again.
#
# Environment (default):
#   RESTARTS  how often all are started again (3)
#   GRACE     seconds that processes get to end by themselves before they are made to (120)
#   PORT      port of the coordinator on 127.0.0.1 (a free one)
#   DEVICES   fake CPU devices per process, for trying things out (none)
#   GPUS      GPUs per process; 0 leaves them alone (all there are, divided evenly)

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

RESTARTS=${RESTARTS:-3}
GRACE=${GRACE:-120}
PORT=${PORT:-}
DEVICES=${DEVICES:-}
GPUS=${GPUS:-}

parse "$@"
if ((${#WORDS[@]} != 1)); then fail 'give the number of processes: local.sh N -- COMMAND'; fi
N=${WORDS[0]}
whole N 1
whole RESTARTS 0
whole GRACE 0
if [[ $PORT ]]; then whole PORT 1; fi
if [[ $DEVICES ]]; then whole DEVICES 1; fi
if [[ $GPUS ]]; then whole GPUS 0; fi
if ((${#COMMAND[@]} == 0)); then fail 'give a command after --: local.sh N -- COMMAND'; fi
if [[ $DEVICES && ${GPUS:-0} != 0 ]]; then fail 'DEVICES is for CPUs: unset it or GPUS'; fi

# The GPUs of this machine, or those of them that CUDA_VISIBLE_DEVICES allows.
CARDS=()
if [[ -z $DEVICES && $GPUS != 0 ]]; then
  if [[ ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra CARDS <<< "$CUDA_VISIBLE_DEVICES"
  else
    while read -r _ card _; do CARDS+=("${card%:}"); done < <(nvidia-smi -L 2> /dev/null | grep '^GPU ')
  fi
  if [[ $GPUS ]] && ((${#CARDS[@]} < GPUS * N)); then
    fail "$N processes with GPUS=$GPUS each need $((GPUS * N)) GPUs: there are ${#CARDS[@]}"
  fi
  if [[ -z $GPUS ]] && ((${#CARDS[@]} % N)); then
    fail "${#CARDS[@]} GPUs do not divide among $N processes: set GPUS"
  fi
  GPUS=${GPUS:-$((${#CARDS[@]} / N))}
fi

# Nobody listens on a free port. Those that the system hands out by itself (from 32768 on) are avoided.
free_port() {
  local port=$((10000 + RANDOM % 20000))
  while (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; do port=$((port + 1)); done
  echo "$port"
}

PIDS=()     # of processes; empty where one has ended
READERS=()  # the processes that number their lines
PIPES=''    # folder of the pipes between them
stopping='' # the signal that asked us to stop; nothing is restarted after it
pending=''  # the same until it has been passed on

start() {
  local i port settings full
  port=${PORT:-$(free_port)} # a new one each time: the old one may linger
  for ((i = 0; i < N; i++)); do
    settings=()
    if [[ $DEVICES ]]; then
      local flag="--xla_force_host_platform_device_count=$DEVICES"
      settings=("JAX_PLATFORMS=cpu" "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }$flag")
    elif ((GPUS)); then
      settings=("CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${CARDS[*]:i*GPUS:GPUS}")")
    fi
    full=(env ${settings[@]+"${settings[@]}"} "${COMMAND[@]}"
      --coordinator "127.0.0.1:$port" --num-processes "$N" --process-id "$i")
    if [[ $DRY ]]; then
      quoted "${full[@]}"
      continue
    fi
    rm -f "$PIPES/$i.out" "$PIPES/$i.err"
    mkfifo "$PIPES/$i.out" "$PIPES/$i.err"
    # Job control gives a process a group of its own: Ctrl-C reaches it once, through us, and what
    # it leaves behind can be ended with it.
    set -m
    sed -u "s/^/[$i] /" < "$PIPES/$i.out" &
    READERS+=($!)
    sed -u "s/^/[$i] /" < "$PIPES/$i.err" >&2 &
    READERS+=($!)
    "${full[@]}" < /dev/null > "$PIPES/$i.out" 2> "$PIPES/$i.err" &
    PIDS[i]=$!
    set +m
  done
}

send() {
  local pid
  for pid in ${PIDS[@]+"${PIDS[@]}"}; do
    if [[ $pid ]]; then kill "-$1" "$pid" 2> /dev/null || true; fi
  done
}

# destroy PID...: ends processes and what they have started.
destroy() {
  local pid
  for pid in "$@"; do
    if [[ $pid ]]; then kill -KILL -- "-$pid" 2> /dev/null || true; fi
  done
}

# Waits until the last lines are printed.
drain() {
  local pid until=$((SECONDS + 3))
  for pid in "${READERS[@]}"; do
    while kill -0 "$pid" 2> /dev/null && ((SECONDS < until)); do sleep 0.02 || true; done
  done
  READERS=()
}

finish() {
  destroy ${PIDS[@]+"${PIDS[@]}"}
  rm -rf "$PIPES"
}

# Waits for all processes and sets RESULT: 0, AGAIN, or the code of the first that failed.
RESULT=0
watch() {
  local i code left=$N ended='' deadline=''
  RESULT=0
  while ((left)); do
    for ((i = 0; i < N; i++)); do
      if [[ -z ${PIDS[i]} ]] || kill -0 "${PIDS[i]}" 2> /dev/null; then continue; fi
      code=0
      { wait "${PIDS[i]}"; } 2> /dev/null || code=$?
      destroy "${PIDS[i]}" # what it has left behind
      PIDS[i]=''
      left=$((left - 1))
      if ((code == 0)) || [[ $ended ]]; then continue; fi # what we ended ourselves has no say
      if ((RESULT == 0 || RESULT == AGAIN)); then RESULT=$code; fi
      if [[ $stopping ]]; then continue; fi
      if ((code != AGAIN)); then
        note "process $i ended with exit code $code"
        send TERM
        ended=1
        deadline=$((SECONDS + GRACE))
      elif [[ -z $deadline ]]; then
        note "process $i saved and asks to be started again"
        deadline=$((SECONDS + GRACE)) # the others will notice, and do the same
      fi
    done
    if [[ $pending ]]; then
      send "$pending"
      pending=''
      deadline=''
    fi
    if [[ $deadline ]] && ((left && SECONDS >= deadline)); then
      if [[ $ended ]]; then destroy "${PIDS[@]}"; else send TERM; fi
      ended=1
      deadline=$((SECONDS + GRACE))
    fi
    # In braces, so that bash's own remarks on killed jobs go the same way.
    if ((left)); then { sleep 0.2 || true; } 2> /dev/null; fi
  done
}

if [[ $DRY ]]; then
  start
  exit
fi
if ! command -v "${COMMAND[0]}" > /dev/null; then fail "there is no command '${COMMAND[0]}'"; fi

trap 'stopping=TERM pending=TERM' TERM
trap 'stopping=INT pending=INT' INT
PIPES=$(mktemp -d)
trap finish EXIT

restarts=0
while :; do
  start
  watch
  drain
  if ((RESULT != AGAIN)) || [[ $stopping ]]; then exit "$RESULT"; fi
  if ((restarts == RESTARTS)); then fail_with "$AGAIN" "gave up after $RESTARTS restarts"; fi
  restarts=$((restarts + 1))
  note "restart $restarts of $RESTARTS"
done
