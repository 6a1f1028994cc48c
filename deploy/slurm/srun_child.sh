#!/bin/sh
# Runs a child process of the pipeline as a Slurm job of its own. For the environment of a worker:
#
#   JORA_LAUNCHER="/opt/jora/deploy/slurm/srun_child.sh --partition=gpu --gres=gpu:1 --time=24:00:00"
#   JORA_TRAIN_LAUNCHER="/opt/jora/deploy/slurm/srun_child.sh --partition=gpu --nodes=2 --ntasks-per-node=1 --gres=gpu:8"
#
# All words before the first one without a leading dash are options of srun. Several tasks join one mesh by themselves.
# The exit status is that of the child: 2 for wrong input, 143 after SIGTERM with a written checkpoint, which the pipeline
# runs again and which then resumes. So a preempted job is queued again, up to `retries.max_retries` times.
set -eu

options=
while [ $# -gt 0 ]; do
    case $1 in
    -*) options="$options $1"; shift ;;
    *) break ;;
    esac
done

# The name is a checksum of the command, which names the spec of one stage of one key.
name=jora-$(printf '%s\n' "$*" | cksum | cut -d ' ' -f 1)
# A killed srun can leave its job behind, which would write to the same checkpoints. It is ended first; `singleton` makes
# the new job wait until it is gone.
scancel --quiet --name="$name" --user="$(id -un)" 2>/dev/null || true

stop() {
    # To all tasks of the step. The children write a checkpoint and end with 143. Slurm kills them after KillWait.
    scancel --signal=TERM --name="$name" --user="$(id -un)" 2>/dev/null || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT HUP

# --kill-on-bad-exit: without one of its processes a mesh waits for ever. --unbuffered: progress at once.
# shellcheck disable=SC2086  # options are words; an option with a space has no use here
srun --job-name="$name" --dependency=singleton --unbuffered --kill-on-bad-exit=1 $options "$@" &
child=$!
# A trapped signal interrupts `wait`; the status of srun is taken when it has ended.
while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
done
exit "$status"
