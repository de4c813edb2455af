#!/usr/bin/env bash
# The data of the mini model: photographs -> tiles chosen by detail -> training shards, validation and evaluation tiles.
#
#   bash scripts/make_mini_data.sh [DATA] [PHOTOS]        default: data/mini, data/photos (fetched if it is not there)
#
# DATA/train         shards of 320-px tiles, at most 45 MB: the most detailed ones, at full and at half size, and
#                    15 % smooth ones, so that skies are learnt too
# DATA/valid         a shard of 512-px tiles of photographs that training never sees
# DATA/valid_tiles   the same tiles as PNG: to choose settings by
# DATA/eval          512-px tiles as PNG, of photographs from other packages: to report, never to choose by
#
# Each part is written whole or not at all; parts that are there are kept, so an interrupted run can go on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=${1:-data/mini}
photos=${2:-data/photos}
python=${PYTHON:-python3}
most_bytes=45000000

# Whole photographs are held out, no tiles: neighbouring tiles look alike. Two or three of each source.
held_out='Bamboo|Red-Maple|FallenLeaf|Path|LadyBird|Dune|pexels-36358763|pexels-4389955|pexels-5604956'

[ -e "$photos/manifest.tsv" ] || "$python" scripts/get_photos.py "$photos"
mapfile -t train < <(find "$photos/train" -type f | grep -Ev "__($held_out)\.jpg$" | LC_ALL=C sort)
mapfile -t valid < <(find "$photos/train" -type f | grep -E "__($held_out)\.jpg$" | LC_ALL=C sort)
echo "training photographs: ${#train[@]}, held out for validation: ${#valid[@]}"

mkdir -p "$data"
missing() { [ ! -e "$data/$1" ] || { echo "$data/$1 is there already and kept"; false; }; }

if missing eval; then
    "$python" scripts/make_tiles.py "$photos/eval" "$data/eval" --tile 512 --count 60 --per-photo 3 --detailed 36
fi
if missing valid_tiles; then
    "$python" scripts/make_tiles.py "${valid[@]}" "$data/valid_tiles" \
        --tile 512 --count 24 --per-photo 3 --detailed 36 --also-half
fi
if missing valid; then
    "$python" scripts/make_shards.py "$data"/valid_tiles/*.png "$data/valid" --min-side 512 --quality 95
fi
if missing train; then
    tiles=$(mktemp -d)
    trap 'rm -rf "$tiles"' EXIT
    "$python" scripts/make_tiles.py "${train[@]}" "$tiles/train" \
        --tile 320 --count 1500 --per-photo 40 --detailed 38 --smooth 0.15 --also-half
    "$python" scripts/make_shards.py "$tiles"/train/*.png "$data/train" --min-side 320 --quality 93 --shard-size 6MB
fi
bytes=$(cat "$data"/train/*.tar | wc -c)
if [ "$bytes" -gt "$most_bytes" ]; then
    echo "make_mini_data.sh: the training shards have $bytes bytes, at most $most_bytes are wanted: lower --count" >&2
    exit 1
fi
