#!/usr/bin/env bash
# Train on Cloud TPU VMs, asked for as queued resources.
#
#   launch/tpu_vm.sh create NAME              ask for the TPU and wait until it is there
#   launch/tpu_vm.sh setup  NAME              copy this checkout to all its workers and install it
#   launch/tpu_vm.sh run    NAME -- COMMAND   run a command on all its workers until it ends
#   launch/tpu_vm.sh logs   NAME              follow the output of the workers
#   launch/tpu_vm.sh stop   NAME              end the command: it saves first
#   launch/tpu_vm.sh list                     the queued resources of the zone, with their states
#   launch/tpu_vm.sh delete NAME              delete the TPU and the request
#   --dry-run                                 print the exact commands, run nothing
#   -h                                        this text
#
# Example:
#   export ZONE=us-central1-a TPU_TYPE=v5litepod-16
#   launch/tpu_vm.sh run b256 -- emigm train --config configs/imagenet256.py:size=b \
#       --workdir gs://BUCKET/b256
#   launch/tpu_vm.sh delete b256
#
# `run` creates and sets up what is missing. It starts the command again when it returns 75 ("saved,
# start me again"), and when the TPU was preempted: that one is deleted and asked for anew. Exit code
# 0 ends it, any other is reported and ends it. The command does not hang on the connection: after
# Ctrl-C, or from another machine, the same `run` goes on watching it. Nothing is deleted at the end.
#
# Environment (default):
#   ZONE          zone of the TPU (must be set)
#   TPU_TYPE      what to ask for: v4-32, v5litepod-16, v5p-32, v6e-64 ... (must be set to create)
#   PROJECT       Google Cloud project (that of gcloud)
#   CAPACITY      spot, on-demand or reserved (spot)
#   SLICES        number of slices of that type (1)
#   RUNTIME       software of the TPU VM (the one for its type)
#   CREATE_FLAGS  more flags of `gcloud compute tpus queued-resources create` (none)
#   WORKER        the worker to show the logs of: a number, or all (all)
#   RESTARTS      how often run starts again before it gives up (100)
#   RETRIES       how often in a row a TPU may not answer before run gives up (20)
#   POLL          seconds between two looks at a TPU that is not there or does not answer (30)

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

ZONE=${ZONE:-}
TPU_TYPE=${TPU_TYPE:-}
PROJECT=${PROJECT:-}
CAPACITY=${CAPACITY:-spot}
SLICES=${SLICES:-1}
RUNTIME=${RUNTIME:-}
CREATE_FLAGS=${CREATE_FLAGS:-}
WORKER=${WORKER:-all}
RESTARTS=${RESTARTS:-100}
RETRIES=${RETRIES:-20}
POLL=${POLL:-30}

parse "$@"
if ((${#WORDS[@]} == 0)); then fail 'say what to do: create, setup, run, logs, stop, list or delete'; fi
verb=${WORDS[0]}
case $verb in
  list) expected=1 ;;
  create | setup | run | logs | stop | delete) expected=2 ;;
  *) fail "there is no '$verb': create, setup, run, logs, stop, list or delete" ;;
esac
if ((${#WORDS[@]} < expected)); then fail "$verb needs the name of a TPU: tpu_vm.sh $verb NAME"; fi
if ((${#WORDS[@]} > expected)); then
  fail "'${WORDS[expected]}' is too much (a command to run goes after --)"
fi
if ((expected == 2)); then check_name "${WORDS[1]}"; fi
NAME=${WORDS[1]:-}
if [[ $verb == run ]] && ((${#COMMAND[@]} == 0)); then
  fail 'give a command to run after --: tpu_vm.sh run NAME -- COMMAND'
fi
if [[ $verb != run ]] && ((${#COMMAND[@]})); then fail "only run takes a command"; fi
if [[ $verb == run ]]; then check_workdir; fi

require ZONE us-central1-a
if [[ $verb == create || $verb == run ]]; then require TPU_TYPE v5litepod-16; fi
one_of CAPACITY spot on-demand reserved
whole SLICES 1
whole RESTARTS 0
whole RETRIES 0
whole POLL 0
if [[ $WORKER != all ]]; then whole WORKER 0; fi
if [[ $TPU_TYPE && -z $RUNTIME ]]; then
  case $TPU_TYPE in # https://cloud.google.com/tpu/docs/runtimes
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-*) RUNTIME=tpu-ubuntu2204-base ;;
    v5e-*) fail "Cloud TPU calls $TPU_TYPE v5litepod-${TPU_TYPE#v5e-}: export TPU_TYPE=v5litepod-${TPU_TYPE#v5e-}" ;;
    *) fail "TPU_TYPE=$TPU_TYPE is unknown here: v4-32, v5litepod-16, v5p-32, v6e-64 ..., or set RUNTIME too" ;;
  esac
fi
needs gcloud https://cloud.google.com/sdk/docs/install

QUEUED=(gcloud compute tpus queued-resources)
WHERE=(--zone="$ZONE")
if [[ $PROJECT ]]; then WHERE+=(--project="$PROJECT"); fi
DESCRIBE=("${QUEUED[@]}" describe "$NAME" --format='value(state.state)' "${WHERE[@]}")
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

# The state of the request. ABSENT: there is none. UNKNOWN: no answer; gcloud's words are shown.
state() {
  local answer
  if answer=$("${DESCRIBE[@]}" 2> "$SCRATCH/errors"); then
    echo "${answer:-UNKNOWN}"
  elif grep -q NOT_FOUND "$SCRATCH/errors"; then
    echo ABSENT
  else
    cat "$SCRATCH/errors" >&2
    echo UNKNOWN
  fi
}

request() {
  local nodes=(--node-id="$NAME") capacity=() extra=()
  if ((SLICES > 1)); then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
  if [[ $CAPACITY != on-demand ]]; then capacity=("--$CAPACITY"); fi
  if [[ $CREATE_FLAGS ]]; then read -ra extra <<< "$CREATE_FLAGS"; fi
  call "${QUEUED[@]}" create "$NAME" "${nodes[@]}" --accelerator-type="$TPU_TYPE" \
    --runtime-version="$RUNTIME" ${capacity[@]+"${capacity[@]}"} ${extra[@]+"${extra[@]}"} "${WHERE[@]}"
}

remove() { call "${QUEUED[@]}" delete "$NAME" --force --quiet "${WHERE[@]}"; }

# on_workers WHICH COMMAND: runs a command in the home folder of one or all workers, at the same time.
on_workers() {
  local reach=(gcloud compute tpus tpu-vm ssh "$NAME")
  if ((SLICES > 1)); then reach=("${QUEUED[@]}" ssh "$NAME" --node=all --batch-size=all); fi
  call "${reach[@]}" --worker="$1" --command="$2" "${WHERE[@]}"
}

# worker ARGUMENT...: tpu_worker.sh on all workers.
worker() { on_workers all "bash emigm_jax/launch/tpu_worker.sh $(quoted "$@")"; }

setup() {
  local bundle=emigm_jax.tgz copy=(gcloud compute tpus tpu-vm scp)
  if ((SLICES > 1)); then copy=("${QUEUED[@]}" scp --node=all --batch-size=all); fi
  call tar -czf "$SCRATCH/$bundle" -C "$ROOT" --exclude=__pycache__ \
    setup.py pyproject.toml README.md LICENSE emigm_jax configs launch || return
  call "${copy[@]}" "$SCRATCH/$bundle" "$NAME:$bundle" --worker=all "${WHERE[@]}" || return
  on_workers all "rm -rf emigm_jax && mkdir emigm_jax && tar -xzf $bundle -C emigm_jax && bash emigm_jax/launch/tpu_worker.sh install"
}

restarts=0
# again WHY: counts a new start.
again() {
  if ((restarts == RESTARTS)); then
    fail_with "$AGAIN" "$1; gave up after $RESTARTS restarts, the same command goes on"
  fi
  restarts=$((restarts + 1))
  note "$1: restart $restarts of $RESTARTS"
}

misses=0
# missed WHAT: waits a little before the next try, and gives up after many in a row.
missed() {
  if ((misses == RETRIES)); then fail_with 1 "$1, even after $RETRIES retries; the same command goes on"; fi
  misses=$((misses + 1))
  sleep "$POLL"
}

fresh=''   # the TPU is new: nothing is installed on it
seen=''    # we had it once in this run
removed='' # we deleted it ourselves
# Waits until the TPU is there, and asks for it where that is needed.
obtain() {
  local now last='' asked=''
  while :; do
    now=$(state)
    if [[ $now != "$last" ]]; then note "$NAME is $now"; fi
    last=$now
    case $now in
      ACTIVE)
        seen=1
        removed=''
        misses=0
        return
        ;;
      ABSENT | DELETING)
        # Somebody wants to be rid of it. What is preempted becomes SUSPENDED and stays.
        if [[ $asked || ($seen && -z $removed) ]]; then fail_with 1 "$NAME was deleted: not asking for it again"; fi
        if [[ $now == DELETING ]]; then
          sleep "$POLL"
          continue
        fi
        request || fail_with 1 "gcloud did not create $NAME (see above)"
        asked=1
        fresh=1
        ;;
      SUSPENDING | SUSPENDED | FAILED)
        if [[ $now == FAILED && $asked ]]; then
          fail_with 1 "the request failed; why: $(quoted "${DESCRIBE[@]/value(state.state)/yaml(state)}")"
        fi
        note "$NAME was preempted or failed: asking for a new one"
        asked=''
        if remove; then removed=1; else missed "gcloud does not delete $NAME"; fi
        ;;
      UNKNOWN) missed "gcloud does not tell the state of $NAME" ;;
      *) # in the queue, or on its way
        misses=0
        sleep "$POLL"
        ;;
    esac
  done
}

# A new TPU has no tpu_worker.sh yet.
STATUS='test ! -d emigm_jax || bash emigm_jax/launch/tpu_worker.sh status'

# What the workers are at, in one word: running, done, again, stopped, gone (rebooted under us),
# lost (no answer), or the exit code of one that failed.
verdict() {
  local answer words failed
  answer=$(on_workers all "$STATUS") || {
    echo lost
    return
  }
  words=$(grep -xE 'running|none|stopped|[0-9]+' <<< "$answer" || true)
  failed=$(grep -xvE "running|none|stopped|0|$AGAIN" <<< "$words" || true)
  if grep -qx running <<< "$words"; then
    echo running
  elif [[ $failed ]]; then
    head -n 1 <<< "$failed"
  elif grep -qx stopped <<< "$words"; then
    echo stopped
  elif [[ -z $words ]] || grep -qx none <<< "$words"; then
    echo gone
  elif grep -qx "$AGAIN" <<< "$words"; then
    echo again
  else
    echo "done"
  fi
}

# Follows the command until it has ended on all workers; sets ANSWER to a verdict.
ANSWER=''
watch() {
  while :; do
    worker follow || true # a connection may break at any time
    ANSWER=$(verdict)
    case $ANSWER in
      running) misses=0 ;;
      lost)
        case $(state) in
          ACTIVE | UNKNOWN) ;;
          *) return ;;
        esac
        missed "the workers of $NAME do not answer"
        ;;
      *) return ;;
    esac
  done
}

run() {
  local attached=''
  obtain
  if [[ -z $fresh ]]; then
    if [[ $(verdict) == running ]]; then
      note "a command is running on $NAME already: following it"
      attached=1
    else
      fresh=1 # the checkout may have changed
    fi
  fi
  while :; do
    if [[ -z $attached ]]; then
      if [[ $fresh ]] && ! setup; then
        if [[ $(state) == ACTIVE ]]; then fail_with 1 "the setup of $NAME failed (see above)"; fi
        note "$NAME was lost during its setup"
        obtain
        continue
      fi
      fresh=''
      # Once more where a connection failed; who has started says so and goes on. Then watch notices.
      worker start "${COMMAND[@]}" || worker start "${COMMAND[@]}" || true
    fi
    attached=''
    watch
    case $ANSWER in
      done)
        note "the command has ended well on $NAME, which goes on costing: tpu_vm.sh delete $NAME"
        return
        ;;
      again) again 'the command saved and asks to be started again' ;;
      gone) again "$NAME was restarted" ;;
      lost) note "$NAME is gone" ;;
      stopped) fail_with "$AGAIN" 'the command was stopped; the same run goes on' ;;
      *) fail_with "$ANSWER" "the command failed with exit code $ANSWER (tpu_vm.sh logs $NAME)" ;;
    esac
    obtain
    if [[ $ANSWER == gone ]]; then fresh=1; fi
  done
}

if [[ $DRY && ($verb == create || $verb == run) ]]; then
  quoted "${DESCRIBE[@]}"
  request
  if [[ $verb == run ]]; then
    setup
    worker start "${COMMAND[@]}"
    worker follow
    on_workers all "$STATUS"
  fi
  exit
fi
case $verb in
  create) obtain ;;
  setup) setup ;;
  run) run ;;
  logs) on_workers "$WORKER" 'bash emigm_jax/launch/tpu_worker.sh follow' ;;
  stop) worker stop ;;
  list) call "${QUEUED[@]}" list "${WHERE[@]}" ;;
  delete) remove ;;
esac
