#!/usr/bin/env bash
# Makes the images of the tests from Debian packages, as OCI archives for `ctr image import`. The
# same packages give the same bytes.
. "$(dirname "$0")/lib.sh"

suite=bookworm

# unpack TREE PACKAGES: the files of these packages and of what they depend on; no script of a
# package is run, so nothing of this machine gets in.
unpack() {
  mmdebstrap --variant=extract --include="$2" "$suite" "$1"
}

# furnish TREE: what every image has beside its packages.
furnish() {
  local tree=$1
  # apt's and the packager's own files; device nodes come from the runtime.
  rm -rf "${tree:?}"/{dev,var/cache,var/lib/apt,var/lib/dpkg,var/log,etc/apt,etc/dpkg} \
    "$tree"/usr/share/{doc,man,info,locale,lintian,bash-completion,pixmaps,applications}
  rm -f "$tree"/etc/{fstab,hostname,resolv.conf}
  mkdir -p "$tree"/{dev,etc,home/agent,opt,proc,root,run,srv,sys,tmp,usr/bin,usr/local/bin,var/lib,var/tmp}
  chmod 0700 "$tree/root"
  chmod 1777 "$tree/tmp" "$tree/var/tmp"
  chown 1000:1000 "$tree/home/agent"
  printf '%s\n' root:x:0:0:root:/root:/bin/sh nobody:x:65534:65534:nobody:/:/bin/false \
    agent:x:1000:1000:agent:/home/agent:/bin/sh >"$tree/etc/passwd"
  printf '%s\n' root:x:0: nogroup:x:65534: agent:x:1000: >"$tree/etc/group"
  printf '%s\n' '127.0.0.1 localhost' '::1 localhost' >"$tree/etc/hosts"
}

busybox() {
  local tree=$1 applet
  unpack "$tree" busybox-static
  furnish "$tree"
  for applet in $("$tree/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
  done
  ln -s ../../bin/busybox "$tree/usr/bin/env"
}

# What holds a pod open: a program that waits.
pause() {
  local tree=$1
  unpack "$tree.packages" busybox-static
  mkdir -p "$tree"/{bin,dev,etc,proc,sys}
  cp "$tree.packages/bin/busybox" "$tree/bin/sleep"
  rm -rf "$tree.packages"
}

python() {
  local tree=$1
  # python3-minimal has a tenth of the library; a shell and a few commands make a usable image.
  unpack "$tree" python3,libpython3-stdlib,dash,coreutils,libc-bin,util-linux,grep,sed,procps,tzdata
  furnish "$tree"
  # Perl comes with debconf, half the image; gconv is for iconv(3); the timezones are there thrice.
  rm -rf "$tree"/usr/{bin/perl*,lib/*/perl*,lib/*/libperl*,share/perl*} \
    "$tree"/usr/lib/*/gconv "$tree"/usr/share/zoneinfo/{posix,right}
  # On a read-only root nothing compiled is kept: without this every start compiles what it imports.
  # Checked by nothing, since nothing in an image changes; in sorted order, in one process.
  chroot "$tree" /usr/bin/python3 -I -m compileall -q -j 1 --invalidation-mode unchecked-hash \
    /usr/lib/python3.11
}

# What people run: servers, libraries with shared objects, programs without libc.
workbench() {
  local tree=$1
  unpack "$tree" python3,libpython3-stdlib,python3-numpy,python3-ipykernel,nginx-light,postgresql-15,dash,coreutils,libc-bin,grep,sed,procps,util-linux,strace,gdb-minimal,bubblewrap
  furnish "$tree"
  # Users that packages make when they are installed, which they are not.
  printf '%s\n' www-data:x:33:33:www-data:/var/www:/bin/false >>"$tree/etc/passwd"
  printf '%s\n' adm:x:4: www-data:x:33: >>"$tree/etc/group"
  mkdir -p "$tree"/var/{log/nginx,lib/nginx,www/html}
  [ -e "$tree/etc/nginx/sites-enabled/default" ] || ln -s ../sites-available/default "$tree/etc/nginx/sites-enabled/default"
  cp "$tree/usr/share/nginx/html/index.html" "$tree/var/www/html/index.nginx-debian.html"
  # Compilers and the like that come along: PostgreSQL's JIT, Perl, gconv, tests.
  rm -rf "$tree"/usr/lib/llvm* "$tree"/usr/lib/*/libLLVM* "$tree"/usr/lib/postgresql/15/lib/{bitcode,llvmjit*} \
    "$tree"/usr/{bin/perl*,lib/*/perl*,lib/*/libperl*,share/perl*} "$tree"/usr/lib/*/{gconv,libclang*,libz3*} \
    "$tree"/usr/share/{icons,postgresql-common,zoneinfo/posix,zoneinfo/right}
  find "$tree/usr/lib/python3/dist-packages" -type d -name tests -prune -exec rm -rf {} +
  # libblas and liblapack are alternatives, which a script of the package would have chosen.
  for library in blas lapack; do
    ln -sf "$library/lib$library.so.3" "$tree/usr/lib/$(uname -m)-linux-gnu/lib$library.so.3"
  done
  need_go static-go
  CGO_ENABLED=0 go build -o "$tree/opt/static-go" "$here/../benign/static.go"
  rustc --edition 2024 -C opt-level=s -C strip=symbols -C target-feature=+crt-static \
    -o "$tree/opt/static-rust" "$here/../benign/static.rs"
  chroot "$tree" /usr/bin/python3 -I -m compileall -q -j 1 --invalidation-mode unchecked-hash \
    /usr/lib/python3.11 /usr/lib/python3/dist-packages || true
}

# Servers as their own images have them: a user by name, a folder in /run and a volume that are that user's.
databases() {
  local tree=$1
  unpack "$tree" redis-server,mariadb-server-core,mariadb-client-core,dash,coreutils,libc-bin,grep,sed
  furnish "$tree"
  rm -rf "$tree"/usr/{bin/perl*,lib/*/perl*,lib/*/libperl*,share/perl*} "$tree"/usr/lib/*/gconv
  printf '%s\n' redis:x:999:999:redis:/data:/bin/false mysql:x:998:998:mysql:/nonexistent:/bin/false >>"$tree/etc/passwd"
  printf '%s\n' redis:x:999: mysql:x:998: >>"$tree/etc/group"
  mkdir -p "$tree"/{data,run/redis,run/mysqld,var/lib/mysql}
  chown 999:999 "$tree"/{data,run/redis}
  chown 998:998 "$tree"/{run/mysqld,var/lib/mysql}
  chmod 2775 "$tree/run/mysqld"
  # What a build leaves: it is read where it was put.
  printf 'port 0\nunixsocket /run/redis/redis.sock\nsave ""\ndir /data\n' >"$tree/tmp/redis.conf"
}

# What critest's specs run, all of them in one image: conformance_registry.py has the names. Every command that busybox
# has is busybox's, whose words the specs compare; pgrep and ipcs it does not have.
critest() {
  local tree=$1 applet
  # Not busybox-static: its shell would run an `ls` of its own where a spec has hidden /bin/ls.
  unpack "$tree" busybox,coreutils,nginx-light,procps,util-linux
  furnish "$tree"
  rm -rf "$tree"/usr/{bin/perl*,lib/*/perl*,lib/*/libperl*,share/perl*} "$tree"/usr/lib/*/gconv
  # What a spec asks of a set-uid program: who it runs as.
  mv "$tree/usr/bin/id" "$tree/usr/local/bin/set-uid-id"
  chmod 4755 "$tree/usr/local/bin/set-uid-id"
  for applet in $(chroot "$tree" /bin/busybox --list); do
    rm -f "$tree"/{usr/,}{s,}bin/"$applet"
    # No symbolic links: to hide one would hide busybox.
    ln "$tree/bin/busybox" "$tree/bin/$applet"
  done
  # A group that has a member in the image alone.
  printf '%s\n' adm:x:4: www-data:x:33: group-defined-in-image:x:50000:agent >>"$tree/etc/group"
  printf '%s\n' www-data:x:33:33:www-data:/var/www:/bin/false >>"$tree/etc/passwd"
  ln -s /run "$tree/var/run"
  mkdir -p "$tree"/var/{log/nginx,lib/nginx,www/html}
  printf 'served\n' >"$tree/var/www/html/index.html"
  # One port is for pods, the other for a pod in the host's network.
  printf 'server { listen 80; listen 12003; root /var/www/html; }\n' >"$tree/etc/nginx/sites-enabled/default"
}

# Outside judges of a system: stress-ng, and CPython's own tests.
judges() {
  local tree=$1
  unpack "$tree" stress-ng,libpython3.11-testsuite,python3,libpython3-stdlib,dash,coreutils,libc-bin,grep,sed,procps,util-linux,tzdata
  furnish "$tree"
  rm -rf "$tree"/usr/{bin/perl*,lib/*/perl*,lib/*/libperl*,share/perl*} "$tree"/usr/lib/*/gconv
  chroot "$tree" /usr/bin/python3 -I -m compileall -q -j 1 --invalidation-mode unchecked-hash \
    /usr/lib/python3.11 || true
}

# What `make bench` works with: a tree of many files, an interpreter, git, pip and a wheel to install.
bench() {
  local tree=$1
  unpack "$tree" python3,libpython3-stdlib,python3-numpy,python3-ipykernel,python3-pip,python3-setuptools-whl,git,tar,dash,coreutils,libc-bin,grep,sed,procps
  furnish "$tree"
  rm -rf "$tree"/usr/{bin/perl*,lib/*/perl*,lib/*/libperl*,share/perl*} "$tree"/usr/lib/*/gconv
  for library in blas lapack; do
    ln -sf "$library/lib$library.so.3" "$tree/usr/lib/$(uname -m)-linux-gnu/lib$library.so.3"
  done
  chroot "$tree" /usr/bin/python3 -I -m compileall -q -j 1 --invalidation-mode unchecked-hash \
    /usr/lib/python3.11 /usr/lib/python3/dist-packages || true
}

# What containerd's own tests run, all of them in one image: outside_registry.py has the names. Users, groups and a volume are those
# that the tests ask for.
outside() {
  local tree=$1 applet volume name
  # Not busybox-static: what its shell is told by the name of an applet would be no process of its own.
  unpack "$tree" busybox,libc-bin,bash
  furnish "$tree"
  for applet in $(chroot "$tree" /bin/busybox --list); do
    rm -f "$tree"/{usr/,}{s,}bin/"$applet"
    ln "$tree/bin/busybox" "$tree/bin/$applet"
  done
  # The first process of a pid namespace ends by SIGTERM only if it says so, as the nc that the tests know does.
  rm "$tree/bin/nc"
  printf '%s\n' '#!/bin/sh' "trap 'exit 143' TERM" 'busybox nc "$@" &' 'wait $!' >"$tree/bin/nc"
  chmod 0755 "$tree/bin/nc"
  printf '%s\n' 'PRETTY_NAME="a stand-in for Alpine Linux"' >"$tree/etc/os-release"
  # One looks for a file that is set-uid, and runs none.
  : >"$tree/usr/bin/passwd"
  chmod 4755 "$tree/usr/bin/passwd"
  # Another wants a uid that has no user.
  sed -i /^agent:/d "$tree/etc/passwd" "$tree/etc/group"
  printf '%s\n' daemon:x:1:1:daemon:/usr/sbin:/bin/false sys:x:3:3:sys:/dev:/bin/false www-data:x:33:33:www-data:/var/www:/bin/false \
    backup:x:34:34:backup:/var/backups:/bin/false >>"$tree/etc/passwd"
  printf '%s\n' daemon:x:1: sys:x:3: adm:x:4: wheel:x:10:root www-data:x:33: backup:x:34: >>"$tree/etc/group"
  for volume in /test_dir /C:/weird_test_dir /:colon_prefixed; do
    mkdir -p "$tree$volume"
    name=$(basename "${volume%_dir}")
    printf 'test_content\n' >"$tree$volume/${name#:}_file"
  done
  chown -R 65534:65534 "$tree/test_dir"
}

# image NAME COMMAND...: build the tree, write target/images/NAME.tar, drop the tree.
image() {
  local name=$1 tree=$images/$1.tree
  rm -rf "$tree"
  mkdir -p "$images"
  "$name" "$tree"
  python3 -I "$here/oci_archive.py" "$tree" "bulkhead.test/$name:latest" "$images/$name.tar.new" "${@:2}"
  mv "$images/$name.tar.new" "$images/$name.tar"
  rm -rf "$tree"
}

need_root "making images"
# An image is stale when the scripts that make it are newer.
refresh() { # NAME COMMAND...
  local archive=$images/$1.tar
  local stale=$archive
  if [ -e "$archive" ]; then
    stale=$(find "$0" "$here/oci_archive.py" "$here"/../benign/static.* -newer "$archive")
  fi
  [ -n "$stale" ] || return 0
  step "making the image bulkhead.test/$1 from Debian $suite" image "$@"
}

# images.sh [NAME...]: these, or all.
[ $# -gt 0 ] || set -- busybox python pause workbench databases
for name in "$@"; do
  case $name in
    bench | busybox | critest | judges | outside | workbench) refresh "$name" sh ;;
    python) refresh python python3 ;;
    databases)
      # The volumes that the images of these servers declare.
      IMAGE_CONFIG='{ "Volumes": { "/data": {}, "/var/lib/mysql": {} } }' refresh databases sh
      ;;
    pause) refresh pause sleep 2147483647 ;;
    *) die "there is no image $name" ;;
  esac
done
