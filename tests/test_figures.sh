#!/bin/sh
# flowood figures: every file is there and valid, the same bytes for any number of threads, and bad
# input is one line that leaves earlier files alone.
tool=$PWD/build/flowood
name=test_figures beside='^flowood: left out'
. tests/tool.inc
dir=$(mktemp -d) || exit 1
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
build/synthetic "$dir" 80 || bad "synthetic"
root=$PWD
cd "$dir" || exit 1
train=in-train-images-idx3-ubyte in=in-test-images-idx3-ubyte ood=ood-test-images-idx3-ubyte

train() { # text, name
    printf '%b' "$1" > spec
    "$tool" train --data "${3:-$train}" --spec spec --steps 2 --batch 8 --out "$2" > log 2> err ||
        bad "train $2: $(tail -n 1 err)"
}
has() { # folder, files: all are there, and nothing else
    want=$(printf '%s\n' $2 | sort | tr '\n' ' ')
    got=$(ls "$1" | sort | tr '\n' ' ')
    [ "$want" = "$got" ] && ok || bad "$1 has $got, not $want"
}
valid() { # folder: signatures, sizes, and whether SVG parses and the page refers to nothing outside
    for png in "$1"/*.png; do
        [ "$(head -c 8 "$png" | od -An -tx1 | tr -d ' \n')" = 89504e470d0a1a0a ] &&
            [ "$(wc -c < "$png")" -gt 1000 ] && ok || bad "$png is no PNG"
    done
    grep -q '<h2>Scores</h2>' "$1/report.html" && ok || bad "no scores on the page"
    [ "$(grep -o '<img ' "$1/report.html" | wc -l)" = "$(ls "$1"/*.png | wc -l)" ] && ok ||
        bad "the page lacks pictures"
    [ "$(grep -o '<img [^>]*alt="[^"]' "$1/report.html" | wc -l)" = "$(ls "$1"/*.png | wc -l)" ] &&
        ok || bad "pictures without words"
    grep -Eq '(src|href)="?https?:|<script|<link|url\(' "$1/report.html" &&
        bad "the page needs a network or a script" || ok
    if command -v python3 > /dev/null; then
        python3 - "$1" << 'END' && ok || bad "$1: not well-formed"
import glob, struct, sys, xml.dom.minidom, zlib
from html.parser import HTMLParser
for path in glob.glob(sys.argv[1] + "/*.svg"):
    xml.dom.minidom.parse(path)
for path in glob.glob(sys.argv[1] + "/*.png"):
    data, at, packed = open(path, "rb").read(), 8, b""
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    while at < len(data):
        n, name = struct.unpack(">I4s", data[at:at + 8])
        assert zlib.crc32(data[at + 4:at + 8 + n]) == struct.unpack(">I", data[at + 8 + n:at + 12 + n])[0]
        packed += data[at + 8:at + 8 + n] if name == b"IDAT" else b""
        at += 12 + n
    assert len(zlib.decompress(packed)) == height * (1 + width * {0: 1, 2: 3, 3: 1}[kind]), path
class Page(HTMLParser):
    depth = []
    def handle_startendtag(self, tag, attrs):
        pass
    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.depth.append(tag)
    def handle_endtag(self, tag):
        assert self.depth.pop() == tag, tag
page = Page()
page.feed(open(sys.argv[1] + "/report.html").read())
assert not page.depth
END
    else
        skipped=$((skipped + 1))
    fi
}

# a cycle, with everything that applies; a log beside it
train 'input 1x28x28\ndequantize\nlogit\n4* coupling mask=cycle:%% net=mlp hidden=16 bottleneck=2\n' cycle.st
printf 'step,epoch,seconds,bpd,grad_norm,lr,held_out_bpd,auroc\n1,0.1,1,7.5,1,0.1,,\n9,0.9,2,6.5,1,0.1,6.75,0.5\n' > log.csv
shared="couplings.png coadaptation.png masks.png latents.png samples.png interpolation.png most.png histogram.svg roc.svg report.html"
works "a cycle" "$tool" figures cycle.st --in $in --ood $ood --ood $in --limit 20 --log log.csv --threads 1 --out one
has one "$shared cycle.png curve.svg"
valid one
works "two threads" "$tool" figures cycle.st --in $in --ood $ood --ood $in --limit 20 --log log.csv --threads 2 --out two
for file in one/*; do
    cmp -s "$file" "two/$(basename "$file")" && ok || bad "the number of threads changes $file"
done
grep -q 'alpha 0.05' one/report.html && ok || bad "nothing about the detector"

# several scales with batch norm, and a model without a detector
train 'input 1x28x28\ndequantize\nlogit\ncoupling mask=checkerboard:1 net=resnet channels=2 blocks=1\nsqueeze\ncoupling mask=channel:0 net=resnet channels=2 blocks=1\nsplit\nadditive mask=checkerboard:0 net=glow channels=2\n' scales.st
works export "$tool" export scales.st --out plain.st
works "two scales" "$tool" figures plain.st --in $in --ood $ood --limit 9 --out scales
has scales "$shared"
valid scales
grep -q 'no mask lets a part pass' log && ok || bad "what is left out is not said: $(cat log)"

# colour; vectors; points in the plane
cat > make.c << 'END'
#define FLOWOOD_IMPLEMENTATION
#include "flowood.h"
int main(void) {
    static unsigned char colour[40 * 3 * 8 * 8];
    static float point[40 * 2], vector[40 * 5];
    static unsigned char constant[3 * 28 * 28];
    int64_t dim[4] = {40, 3, 8, 8}, plane[2] = {40, 2}, five[2] = {40, 5}, flat[3] = {3, 28, 28};
    fo_context *fo = fo_open(NULL);
    int i;
    for (i = 0; i < (int)sizeof colour; i++)
        colour[i] = (unsigned char)(i * 7919 >> 3);
    for (i = 0; i < 80; i++)
        point[i] = (float)(i * 37 % 41) / 10;
    for (i = 0; i < 200; i++)
        vector[i] = (float)(i * 53 % 97) / 10;
    for (i = 0; i < 3 * 28 * 28; i++)
        constant[i] = 128;
    fo_save_npy(fo, "colour.npy", FO_U8, 4, dim, colour);
    fo_save_npy(fo, "point.npy", FO_F32, 2, plane, point);
    fo_save_npy(fo, "vector.npy", FO_F32, 2, five, vector);
    fo_save_npy(fo, "constant.npy", FO_U8, 3, flat, constant);
    return fo_failed(fo) != FO_OK;
}
END
${CC:-cc} -O0 -I"$root" make.c -o make -lm 2> err && ./make && ok || bad "no data: $(head -n 1 err)"
train 'input 3x8x8\ndequantize\nlogit\ncoupling mask=channel:0 net=glow channels=2\nsqueeze\nconv1x1\ncoupling mask=channel:1 net=glow channels=2\n' colour.st colour.npy
works colour "$tool" figures colour.st --in colour.npy --ood colour.npy --out colour
has colour "$shared"
valid colour
train 'input 2\nstandardize\n4* coupling mask=halves:%% hidden=8\n' point.st point.npy
works "the plane" "$tool" figures point.st --in point.npy --ood point.npy --out plane
has plane "masks.png plane.png histogram.svg roc.svg report.html"
valid plane
train 'input 5\nstandardize\n2* coupling mask=halves:%% hidden=8\n' vector.st vector.npy
works vectors "$tool" figures vector.st --in vector.npy --ood vector.npy --out vector
has vector "masks.png histogram.svg roc.svg report.html"
grep -q 'couplings.png (the model has no images)' log && ok || bad "what is left out is not said"

# little or dull data is drawn all the same
works "one sample" "$tool" figures cycle.st --in $in --ood $ood --limit 1 --out single
has single "$shared cycle.png"
works "constant images" "$tool" figures cycle.st --in constant.npy --ood constant.npy --out constant
has constant "$shared cycle.png"

# bad input: one line, and the files of an earlier run as they were
cp -r one before
refuses 1 "samples are 3x8x8, those of cycle.st are 1x28x28" "$tool" figures cycle.st --in $in --ood colour.npy --out one
refuses 1 "missing.npy" "$tool" figures cycle.st --in $in --ood missing.npy --out one
refuses 1 "missing.st" "$tool" figures missing.st --in $in --ood $ood --out one
refuses 1 "no log of train" "$tool" figures cycle.st --in $in --ood $ood --limit 5 --log $in --out one
refuses 1 "name a folder" "$tool" figures cycle.st --in $in --ood $ood --limit 5 --out cycle.st
grep -q "left out" err && bad "the folder is looked at behind the long work" || ok
refuses 1 "name a folder" "$tool" figures cycle.st --in $in --ood $ood --limit 5 --out none/here
refuses 2 "figures needs --ood" "$tool" figures cycle.st --in $in --out one
refuses 2 "figures needs --out" "$tool" figures cycle.st --in $in --ood $ood
if [ "$(id -u)" = 0 ]; then
    skipped=$((skipped + 1)) # whoever may write everywhere cannot be kept out
else
    chmod a-w two
    refuses 1 "name a folder" "$tool" figures cycle.st --in $in --ood $ood --limit 5 --out two
fi
for file in before/*; do
    cmp -s "$file" "one/$(basename "$file")" && ok || bad "a failed run changed $file"
done
[ -z "$(find . -name '*.part')" ] && ok || bad "left behind: $(find . -name '*.part')"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
