#!/bin/sh
# Words count the same whatever their case, and the most frequent comes first.
set -e
echo "The cat saw the dog. THE dog ran." | sh dist/tally > /tmp/found
printf '3 the\n2 dog\n1 cat\n1 ran\n1 saw\n' > /tmp/wanted
if ! cmp -s /tmp/wanted /tmp/found; then
    echo "wanted:"; cat /tmp/wanted
    echo "found:"; cat /tmp/found
    exit 1
fi
echo "ok: words"
