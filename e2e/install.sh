#!/usr/bin/env bash
# Installs what the end-to-end tests run against: Postfix with Cyrus SASL, HAProxy,
# and CPython's own test suite, whose test_email/data/*.txt are a collection of
# real and malformed mail. Debian and its relatives; needs root and apt.
#
# Packages that are there already are skipped, and no daemon is started.
set -euo pipefail

say() { printf 'e2e/install.sh: %s\n' "$*"; }
die() { say "$*" >&2; exit 1; }

installed() { [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null || true)" = "ii " ]; }
mails() { compgen -G '/usr/lib/python3*/test/test_email/data/*.txt' >/dev/null; }

need='this needs root and apt: run it as root on Debian or a relative, or in a container of one'
for p in apt-get dpkg-query; do command -v "$p" >/dev/null || die "$need"; done

want=()
for p in postfix sasl2-bin libsasl2-modules libsasl2-modules-db haproxy; do
  installed "$p" || want+=("$p")
done
if [ ${#want[@]} -eq 0 ] && mails; then
  say 'everything is installed'
  exit 0
fi
[ "$(id -u)" = 0 ] || die "$need"

# While this file answers 101, Debian's packages start no daemon.
policy=/usr/sbin/policy-rc.d made=0
if [ ! -e "$policy" ]; then
  made=1
  trap '[ "$made" = 0 ] || rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -y -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 --no-install-recommends)
"${apt[@]}" update
if ! mails; then
  # The version of Python differs from release to release.
  suite=$(apt-cache pkgnames libpython3 | grep -E '^libpython3\.[0-9]+-testsuite$' | sort -V | head -n 1 || true)
  [ -n "$suite" ] || die 'apt knows no libpython3.N-testsuite package, which brings the real mails'
  want+=("$suite")
fi
if ! installed postfix; then
  # The tests write configurations of their own; the system's stays empty.
  echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections
fi
say "installing ${want[*]}"
"${apt[@]}" install "${want[@]}"
mails || die 'the real mails (test_email/data/*.txt) are still missing'
