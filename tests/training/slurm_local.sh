#!/usr/bin/env bash
# A throw-away Slurm of several "nodes" on this machine: munged, slurmctld and a slurmd a node, as root, on loopback.
#
#   SLURM_LOCAL_DIR=DIR slurm_local.sh start [nodes=2] [cpus_per_node=2]     then: export SLURM_CONF=DIR/slurm.conf
#   SLURM_LOCAL_DIR=DIR slurm_local.sh stop                                  ends exactly the daemons that it started
#
# Needs munged, slurmctld and slurmd (Debian: slurm-wlm, munge). The nodes are n1, n2, …; their names stand in /etc/hosts
# between two marks while it runs.
set -euo pipefail
base=${SLURM_LOCAL_DIR:?a folder for configuration, state and logs}
port=${SLURM_LOCAL_PORT:-16817} # of slurmctld; node i listens on port + i
conf=$base/slurm.conf
pids=$base/pids
mark="# slurm_local $base"

die() { echo "slurm_local: $*" >&2; exit 1; }

without_hosts() { # /etc/hosts is written in place: it may be a bind mount
    local text
    text=$(sed "\|^$mark begin|,\|^$mark end|d" /etc/hosts)
    printf '%s\n' "$text" > /etc/hosts
}

write_conf() { # nodes cpus
    local host names
    host=$(hostname -s)
    names=$(seq -s, -f 'n%g' "$1")
    cat > "$conf" << CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$base/munge/munge.socket
CredType=cred/munge
StateSaveLocation=$base/state
SlurmctldPidFile=$base/slurmctld.pid
SlurmctldLogFile=$base/slurmctld.log
SlurmdSpoolDir=$base/spool/%n
SlurmdPidFile=$base/slurmd-%n.pid
SlurmdLogFile=$base/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/builtin
ReturnToService=2
InactiveLimit=0
KillWait=5
MinJobAge=300
Waittime=0
CONF
    local i
    for ((i = 1; i <= $1; i++)); do
        echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$2 RealMemory=8000 State=UNKNOWN"
    done >> "$conf"
    echo "PartitionName=main Nodes=$names Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO" >> "$conf"
}

start() {
    local nodes=${1:-2} cpus=${2:-2} i pid
    [ "$(id -u)" = 0 ] || die "run as root"
    [ ! -s "$pids" ] || die "already started ($pids)"
    mkdir -p "$base"/{state,munge,spool}
    chmod 755 "$base" "$base/munge"
    # munge with a key and a socket of its own: a packaged daemon is left alone
    (umask 077; dd if=/dev/urandom of="$base/munge/munge.key" bs=1024 count=1 status=none)
    munged --force --key-file="$base/munge/munge.key" --socket="$base/munge/munge.socket" \
        --pid-file="$base/munge/munged.pid" --log-file="$base/munge/munged.log" --seed-file="$base/munge/munged.seed"
    for ((i = 0; i < 50; i++)); do
        [ ! -S "$base/munge/munge.socket" ] || [ ! -s "$base/munge/munged.pid" ] || break
        sleep 0.1
    done
    cat "$base/munge/munged.pid" >> "$pids"
    write_conf "$nodes" "$cpus"
    without_hosts
    {
        echo "$mark begin"
        for ((i = 1; i <= nodes; i++)); do echo "127.0.0.1 n$i"; done
        echo "$mark end"
    } >> /etc/hosts
    export SLURM_CONF=$conf
    slurmctld -D -i -f "$conf" > "$base/slurmctld.out" 2>&1 < /dev/null &
    echo $! >> "$pids"
    for ((i = 1; i <= nodes; i++)); do
        mkdir -p "$base/spool/n$i"
        slurmd -D -N "n$i" -f "$conf" > "$base/slurmd-n$i.out" 2>&1 < /dev/null &
        echo $! >> "$pids"
    done
    for ((i = 0; i < 150; i++)); do
        if [ "$(sinfo -h -t idle -o %D 2> /dev/null || true)" = "$nodes" ]; then return 0; fi
        while read -r pid; do
            kill -0 "$pid" 2> /dev/null || { tail -n 5 "$base"/*.log "$base"/*.out >&2; die "a daemon died"; }
        done < "$pids"
        sleep 0.2
    done
    tail -n 20 "$base"/*.log >&2
    die "the nodes did not become idle"
}

stop() {
    [ -f "$pids" ] || return 0
    local pid i alive
    tac "$pids" | while read -r pid; do kill "$pid" 2> /dev/null || true; done
    for ((i = 0; i < 50; i++)); do
        alive=0
        while read -r pid; do if kill -0 "$pid" 2> /dev/null; then alive=1; fi; done < "$pids"
        [ "$alive" = 1 ] || break
        sleep 0.2
    done
    while read -r pid; do kill -9 "$pid" 2> /dev/null || true; done < "$pids"
    rm -f "$pids"
    without_hosts
}

case ${1:-} in
    start) shift; start "$@" ;;
    stop) stop ;;
    *) die "usage: SLURM_LOCAL_DIR=DIR $0 start [nodes] [cpus_per_node] | stop" ;;
esac
