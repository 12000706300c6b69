#!/bin/sh
# Prints each word of its input with how often it occurs, the most frequent first.
set -e
words() {
    tr -cs '[:alpha:]' '\n' | tr '[:upper:]' '[:lower:]' | sed '/^$/d'
}
words | sort | uniq -c | sort -k1,1nr -k2 | awk '{ print $1, $2 }'
