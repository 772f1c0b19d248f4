#!/usr/bin/env bash
# A Slurm cluster on this machine, to test the launcher with: one controller and the nodes a and b, both on loopback, one
# CPU each. Needs root and Debian's packages slurm-wlm and munge, which it installs if they are missing.
#   scripts/slurm_here.sh start FOLDER     with its state in FOLDER; sbatch works until it is stopped
#   scripts/slurm_here.sh stop FOLDER
set -euo pipefail

usage() {
  echo "expected start FOLDER or stop FOLDER, found '$*'" >&2
  exit 1
}

[ $# -eq 2 ] || usage "$@"
folder=$2

start() {
  if [ "$(id -u)" != 0 ]; then
    echo "expected to be root, which Slurm's daemons need, found $(id -un)" >&2
    exit 1
  fi
  if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends slurm-wlm munge >/dev/null
  fi
  mkdir -p "$folder/state" /etc/slurm /run/munge
  chown munge: /run/munge
  # Messages are signed with munge's key, which the package makes, except in some containers.
  if [ ! -s /etc/munge/munge.key ]; then
    (umask 077 && head -c 1024 /dev/urandom >/etc/munge/munge.key)
    chown munge: /etc/munge/munge.key
  fi
  munge -n >/dev/null 2>&1 || runuser -u munge -- munged
  {
    echo "ClusterName=here"
    echo "SlurmctldHost=$(hostname -s)(127.0.0.1)"
    echo "SlurmUser=root"
    echo "AuthType=auth/munge"
    echo "StateSaveLocation=$folder/state"
    echo "SlurmdSpoolDir=$folder/spool-%n"
    echo "SlurmctldPidFile=$folder/controller.pid"
    echo "SlurmdPidFile=$folder/node-%n.pid"
    echo "SlurmctldLogFile=$folder/controller.log"
    echo "SlurmdLogFile=$folder/node-%n.log"
    # No cgroups: they cannot be had in a container.
    echo "ProctrackType=proctrack/linuxproc"
    echo "TaskPlugin=task/none"
    echo "JobAcctGatherType=jobacct_gather/none"
    echo "SelectType=select/cons_tres"
    echo "SelectTypeParameters=CR_Core"
    echo "ReturnToService=2"
    echo "KillWait=30"
    port=17100
    for node in a b; do
      port=$((port + 1))
      echo "NodeName=$node NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$port CPUs=1 State=UNKNOWN"
    done
    echo "PartitionName=v100 Nodes=a,b Default=YES MaxTime=INFINITE State=UP"
  } >/etc/slurm/slurm.conf
  slurmctld -c # without the state of an earlier cluster
  slurmd -N a
  slurmd -N b
  for _ in $(seq 30); do
    [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && return
    sleep 1
  done
  echo "expected two idle nodes within 30 s, found: $(sinfo 2>&1); see $folder/controller.log" >&2
  exit 1
}

stop() {
  scancel --state=PENDING --state=RUNNING --user="$(id -un)" 2>/dev/null || true
  for pid in "$folder"/*.pid; do
    kill "$(cat "$pid")" 2>/dev/null || true
  done
}

case $1 in
start) start ;;
stop) stop ;;
*) usage "$@" ;;
esac
