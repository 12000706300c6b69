#!/bin/sh
# No words, no lines.
set -e
printf '' | sh dist/tally > /tmp/found
printf '...!\n\n' | sh dist/tally >> /tmp/found
test ! -s /tmp/found
echo "ok: nothing"
