#!/bin/sh
# node-run.sh: run by a unit of the node that node.sh boots, as root: makes it one that has Bulkhead, runs the tests, and switches off with a
# container that runs.
export PATH=/usr/local/bin:/usr/bin:/usr/sbin HOME=/root
export BULKHEAD_TEST_SLOWNESS=8

prepare() {
  cp /node/tools/* /usr/local/bin/
  mkdir -p /opt/cni/bin /etc/cni/net.d /etc/containerd /run/b /var/log/pods
  mv /usr/local/bin/bridge /usr/local/bin/host-local /usr/local/bin/loopback /opt/cni/bin/
  cp /node/10-pods.conflist /etc/cni/net.d/
  cp /node/containerd.service /etc/systemd/system/
  cp /node/config.toml /etc/containerd/config.toml
  dpkg -i /node/bulkhead.deb
  bulkhead install
  systemctl daemon-reload
  systemctl enable --quiet --now containerd
  # Where the client of the tests looks for it.
  ln -s /run/containerd/containerd.sock /run/b/c.sock
  for image in busybox pause; do ctr --namespace k8s.io images import "/node/images/$image.tar"; done
}

echo "#### kernel $(uname -r), $(systemctl --version | head -n 1), cgroup v2: $(cat /sys/fs/cgroup/cgroup.controllers)"
# In a condition it would not end at the first thing that fails.
(set -e; prepare) >/tmp/prepare.log 2>&1
prepared=$?
if [ $prepared != 0 ]; then
  sed 's/^/note: /' /tmp/prepare.log
  echo 'node: exit status 1'
  systemctl --no-block poweroff
  exit 1
fi
status=0
# shellcheck disable=SC2046 # they are words
/node/node --color never $(cat /node/arguments) || status=1
journalctl --no-pager --unit containerd 2>/dev/null | tail -n 200 | sed 's/^/log: /'
echo "node: exit status $status"
# The last test is the power-off; the package may have been purged.
if dpkg -i /node/bulkhead.deb >/tmp/again.log 2>&1 && bulkhead install >>/tmp/again.log 2>&1 &&
  systemctl restart containerd >>/tmp/again.log 2>&1 &&
  ctr --namespace k8s.io run --detach --runtime io.containerd.bulkhead.v1 --cgroup system.slice:ctr:last \
    bulkhead.test/busybox:latest last sleep 100000 >>/tmp/again.log 2>&1 &&
  ctr --namespace k8s.io tasks list | grep -q 'last.*RUNNING'; then
  echo 'node: switching off with a container'
else
  sed 's/^/note: /' /tmp/again.log
fi
systemctl --no-block poweroff
