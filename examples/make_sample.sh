#!/bin/sh
# Make examples/sample.ogg, a link to the page's own: synthetic speech, free of anybody's rights.
# Needs Debian's flite and ffmpeg. The voice rms is the one that small models understand best.
set -eu
cd "$(dirname "$0")"
speech=$(mktemp --suffix=.wav)
trap 'rm -f "$speech"' EXIT
flite -voice rms -o "$speech" -t "Hello, and welcome.
This recording was made by a machine, so that you have something to try.
While you listen, the server tells you how far it is, what it is doing, and when it will be done.
Close the page, come back tomorrow, and every word will still be here.
Thank you for listening."
ffmpeg -loglevel error -y -i "$speech" -c:a libvorbis -q:a 2 -map_metadata -1 -fflags +bitexact sample.ogg
