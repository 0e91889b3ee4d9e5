#!/usr/bin/env bash
# Train on TPUs of a GKE cluster, through xpk (pip install xpk).
#
#   launch/gke_xpk.sh build                   build the image and push it
#   launch/gke_xpk.sh run    NAME -- COMMAND  submit a command, to be run on all hosts
#   launch/gke_xpk.sh logs   NAME             follow its output
#   launch/gke_xpk.sh list                    the workloads of the cluster, with their states
#   launch/gke_xpk.sh delete NAME             end and delete a workload
#   --dry-run                                 print the exact commands, run nothing
#   -h                                        this text
#
# Example:
#   export CLUSTER=tpus ZONE=us-central1-a TPU_TYPE=v5litepod-16
#   export IMAGE=us-docker.pkg.dev/PROJECT/REPOSITORY/emigm
#   launch/gke_xpk.sh build
#   launch/gke_xpk.sh run b256 -- emigm train --config configs/imagenet256.py:size=b \
#       --workdir gs://BUCKET/b256
#
# The cluster starts the command again when it returns 75 ("saved, start me again") or a machine is
# lost; exit code 0 ends it, any other below 127 fails it. `logs` asks the cluster that kubectl points
# to; after `run` and `list` that is this one.
#
# Environment (default):
#   CLUSTER   name of the cluster (must be set, but for build)
#   ZONE      its zone (must be set, but for build)
#   IMAGE     the image to run (must be set for build and run)
#   TPU_TYPE  type of a slice: v4-32, v5litepod-16, v5p-32, v6e-64 ... (must be set for run)
#   PROJECT   Google Cloud project (that of gcloud)
#   SLICES    number of slices (1)
#   CAPACITY  cluster, spot, on-demand, or the name of a reservation; all but the first are for
#             clusters that make their machines on demand (cluster)
#   PRIORITY  very-low, low, medium, high or very-high (medium)
#   RESTARTS  how often the cluster starts the command again before it gives up (100)
#   GRACE     seconds between SIGTERM and the end of a machine that is taken away (300)

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"

CLUSTER=${CLUSTER:-}
ZONE=${ZONE:-}
IMAGE=${IMAGE:-}
TPU_TYPE=${TPU_TYPE:-}
PROJECT=${PROJECT:-}
SLICES=${SLICES:-1}
CAPACITY=${CAPACITY:-cluster}
PRIORITY=${PRIORITY:-medium}
RESTARTS=${RESTARTS:-100}
GRACE=${GRACE:-300}

parse "$@"
if ((${#WORDS[@]} == 0)); then fail 'say what to do: build, run, logs, list or delete'; fi
verb=${WORDS[0]}
case $verb in
  build | list) expected=1 ;;
  run | logs | delete) expected=2 ;;
  *) fail "there is no '$verb': build, run, logs, list or delete" ;;
esac
if ((${#WORDS[@]} < expected)); then fail "$verb needs the name of a workload: gke_xpk.sh $verb NAME"; fi
if ((${#WORDS[@]} > expected)); then
  fail "'${WORDS[expected]}' is too much (a command to run goes after --)"
fi
if ((expected == 2)); then check_name "${WORDS[1]}"; fi
NAME=${WORDS[1]:-}
if [[ $verb == run ]] && ((${#COMMAND[@]} == 0)); then
  fail 'give a command to run after --: gke_xpk.sh run NAME -- COMMAND'
fi
if [[ $verb != run ]] && ((${#COMMAND[@]})); then fail 'only run takes a command'; fi
if [[ $verb == run ]]; then check_workdir; fi
if [[ $verb == run && ${COMMAND[*]} == *$'\n'* ]]; then fail 'the command must fit on one line'; fi

if [[ $verb == build || $verb == run ]]; then require IMAGE us-docker.pkg.dev/PROJECT/REPOSITORY/emigm; fi
if [[ $verb == run ]]; then require TPU_TYPE v5litepod-16; fi
if [[ $verb != build ]]; then
  require CLUSTER tpus
  require ZONE us-central1-a
fi
one_of PRIORITY very-low low medium high very-high
whole SLICES 1
whole RESTARTS 0
whole GRACE 0

WHERE=(--cluster "$CLUSTER" --zone "$ZONE")
if [[ $PROJECT ]]; then WHERE+=(--project "$PROJECT"); fi
capacity=()
case $CAPACITY in
  cluster) ;;
  spot | on-demand) capacity=("--$CAPACITY") ;;
  *) capacity=(--reservation "$CAPACITY") ;;
esac

case $verb in
  build)
    needs docker https://docs.docker.com/get-docker
    call docker build --platform linux/amd64 --file "$ROOT/launch/Dockerfile" --build-arg EXTRA=tpu --tag "$IMAGE" "$ROOT"
    call docker push "$IMAGE"
    ;;
  run)
    needs xpk https://github.com/AI-Hypercomputer/xpk
    # exec: xpk passes SIGTERM on to what it has started, which must be the command and not a shell.
    call xpk workload create --workload "$NAME" "${WHERE[@]}" --tpu-type "$TPU_TYPE" \
      --num-slices "$SLICES" --docker-image "$IMAGE" --priority "$PRIORITY" \
      --max-restarts "$RESTARTS" --restart-on-exit-codes "$AGAIN" \
      --termination-grace-period-seconds "$GRACE" ${capacity[@]+"${capacity[@]}"} \
      --command "exec $(quoted "${COMMAND[@]}")"
    ;;
  logs)
    needs kubectl https://kubernetes.io/docs/tasks/tools
    call kubectl logs --selector "jobset.sigs.k8s.io/jobset-name=$NAME" --all-containers --prefix \
      --follow --tail 100 --max-log-requests 1000
    ;;
  list)
    needs xpk https://github.com/AI-Hypercomputer/xpk
    call xpk workload list "${WHERE[@]}"
    ;;
  delete)
    needs xpk https://github.com/AI-Hypercomputer/xpk
    call xpk workload delete --workload "$NAME" "${WHERE[@]}" --force
    ;;
esac
