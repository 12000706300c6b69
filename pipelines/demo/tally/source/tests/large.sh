#!/bin/sh
# Twenty thousand lines are counted to the last word.
set -e
i=0
while [ $i -lt 20000 ]; do
    echo "one two two"
    i=$((i + 1))
done | sh dist/tally > /tmp/found
printf '40000 two\n20000 one\n' | cmp - /tmp/found
echo "ok: large"
