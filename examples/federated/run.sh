#!/usr/bin/env bash
# Starts a SuperLink and a SuperNode for each data holder on this machine, runs the app, prints the report, and stops
# everything. Its options are in docs/how-to/federated.md; PYTHON says which interpreter has flwr and pyrostoch.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../../.venv-federated/bin/python}
send=weights skew=iid data=digits holders=5 quorum= rounds=3 timeout=120 keep= pause=0 seed=0
while [ $# -gt 0 ]; do
  case $1 in
    --send | --skew | --data | --holders | --quorum | --rounds | --timeout | --keep | --pause | --seed)
      [ $# -gt 1 ] || { echo "$1: expected a value after it" >&2; exit 2; }
      declare "${1#--}=$2"
      shift 2
      ;;
    *)
      echo "$1: no such option; those that there are stand in docs/how-to/federated.md" >&2
      exit 2
      ;;
  esac
done
[[ $send =~ ^(weights|examples)$ ]] || { echo "--send: expected weights or examples, got $send" >&2; exit 2; }
[[ $skew =~ ^(iid|dirichlet)$ ]] || { echo "--skew: expected iid or dirichlet, got $skew" >&2; exit 2; }
[[ $data =~ ^(digits|mnist)$ ]] || { echo "--data: expected digits or mnist, got $data" >&2; exit 2; }
quorum=${quorum:-$((holders / 2 + 1))}
"$python" -c 'import flwr, pyrostoch' 2>/dev/null || {
  echo "$python has no flwr and pyrostoch; say make federated, or PYTHON=/path/to/python" >&2
  exit 2
}

work=$(mktemp -d)
keep=${keep:-$work/kept}
mkdir -p "$keep/server" "$keep/holders"
keep=$(cd "$keep" && pwd)
pids=()
below() { # all processes that a process has started, and that these have
  local child
  for child in $(ps -o pid= --ppid "$1"); do
    echo "$child"
    below "$child"
  done
}
stop() {
  trap - EXIT INT TERM
  # Some of them are in groups of their own, so that all are looked for while they still have their parents.
  local all pid alive
  all=$(for pid in "${pids[@]}"; do echo "$pid"; below "$pid"; done)
  for pid in $all; do kill -TERM "$pid" 2>/dev/null || true; done
  for _ in $(seq 50); do
    alive=0
    for pid in $all; do kill -0 "$pid" 2>/dev/null && alive=1; done
    [ $alive = 0 ] && break
    sleep 0.1
  done
  for pid in $all; do kill -KILL "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

export FLWR_HOME=$work/flwr FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
PATH=$(cd "$(dirname "$python")" && pwd):$PATH
mkdir -p "$FLWR_HOME"

# Ports that are free now.
mapfile -t ports < <("$python" - "$((holders + 1))" <<'PY'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held), sep="\n")
PY
)
link=${ports[0]}
printf '[superlink]\ndefault = "lab"\n\n[superlink.lab]\naddress = "127.0.0.1:%s"\ninsecure = true\n' "$link" \
  > "$FLWR_HOME/config.toml"

start() { # start NAME COMMAND...: a process group of its own, whose output goes to a file
  local name=$1
  shift
  setsid "$@" > "$work/$name.log" 2>&1 &
  pids+=($!)
  echo "$name $!" >> "$keep/processes"
}
: > "$keep/processes"
start superlink flower-superlink --insecure --host 127.0.0.1 --port "$link"
for _ in $(seq 300); do
  "$python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$link/health', timeout=1)" 2>/dev/null && break
  kill -0 "${pids[0]}" 2>/dev/null || { cat "$work/superlink.log" >&2; exit 1; }
  sleep 0.2
done
for ((i = 0; i < holders; i++)); do
  start "supernode-$i" flower-supernode --insecure --superlink "127.0.0.1:$link" --host 127.0.0.1 \
    --port "${ports[$((i + 1))]}" \
    --node-config "partition-id=$i num-partitions=$holders send=\"$send\" keeps=\"$keep/holders\""
done

rm -f "$keep/server/report.txt"
: > "$keep/run.log"
# In the background, since bash would let a signal wait for a command in front.
flwr run "$here" lab --stream \
  -c "send=\"$send\" skew=\"$skew\" data=\"$data\" holders=$holders quorum=$quorum rounds=$rounds seed=$seed" \
  -c "timeout=$timeout pause=$pause folder=\"$keep/server\"" > "$keep/run.log" 2>&1 &
app=$!
pids+=("$app")
tail -n +1 -f --pid="$app" "$keep/run.log" >&2 &
wait "$app" || true
wait $! || true

# `flwr run` ends well for a run that failed, too.
outcome=$(flwr list --format json lab 2>/dev/null | "$python" -c '
import json, sys
runs = json.load(sys.stdin).get("runs", [])
print(runs[0]["status"] if runs else "no run")' || echo unknown)
[ -f "$keep/server/report.txt" ] && cat "$keep/server/report.txt"
[ "$outcome" = finished:completed ] || { echo "the run failed: $outcome" >&2; exit 1; }
