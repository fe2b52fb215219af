#!/bin/sh
# Finds or fetches the data sets into data/ and verifies their sha256.
#
# Looked up in this order: $FLOWOOD_DATA, data/, ../shared/data/, the folder of Debian's package
# dataset-fashion-mnist. What is found elsewhere is linked, not copied. What is missing is fetched,
# without root: FashionMNIST as Debian's package, the rest from the data sets' public homes.
# Exit status 0: fashion and mnist are there; 1: they are not.
cd "$(dirname "$0")/.." || exit 1
debian=/usr/share/datasets/fashion-mnist
work=build/fetch

# set, file, sha256, public home
files() {
    cat <<'END'
fashion train-images-idx3-ubyte.gz b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7 http://fashion-mnist.s3-website.eu-central-1.amazonaws.com
fashion t10k-images-idx3-ubyte.gz cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa http://fashion-mnist.s3-website.eu-central-1.amazonaws.com
fashion train-labels-idx1-ubyte.gz 0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056 http://fashion-mnist.s3-website.eu-central-1.amazonaws.com
fashion t10k-labels-idx1-ubyte.gz 8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05 http://fashion-mnist.s3-website.eu-central-1.amazonaws.com
mnist t10k-images-idx3-ubyte.gz 1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be https://storage.googleapis.com/cvdf-datasets/mnist
mnist train-images-idx3-ubyte.gz 0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971 https://storage.googleapis.com/cvdf-datasets/mnist
mnist train-labels-idx1-ubyte.gz 1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203 https://storage.googleapis.com/cvdf-datasets/mnist
mnist t10k-labels-idx1-ubyte.gz b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b https://storage.googleapis.com/cvdf-datasets/mnist
notmnist t10k-images-idx3-ubyte.gz 70ae9e06201f2827e5b0a3781a3169d735dd2efc69996b9eeaee7f10ed4044d7 -
cifar10 train-images.npy d5988dfbed5a4cba4ac8cdbc5030ec1445f9aa4a9c953e24b0b9d494c666327f -
cifar10 test-images.npy c3ceef97f7046a3c182152144d7cc700929391d43c78a85b2ece02ad4a011b58 -
features notmnist-test.npy 020db8907b6745faa4c0c159fcb075c4dec101107823b915f7e7ea063b16e816 -
features cifar10-train.npy a7fb4eb00592247495145f7427229c5ec6cff4aaa50c4d0af8d1103f7fc13722 -
features cifar10-test.npy 10cc84a97be4440997709c43e97ba7e3817926c88c834646e7b834b6e10402fe -
features fashion-train.npy 40ad9ee9805fb44adeff95f5655dad872aa4ce8e1c91a746f17f0db3092654da -
features fashion-test.npy e77e2ba3baffb9f88cd490cc514f70fcc1b23082ab382ff474323f2fb436361c -
features mnist-test.npy 23523fb1bda176ceffa2a88eb6fb5c530c5e008f6426cb365a644c48da03ae95 -
END
}

sum_of() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi |
        cut -d ' ' -f 1
}

# The published MNIST files exist in two packings of the same images: compare those as well.
same_content() {
    case "$1/$2" in
    mnist/train-images*) want=6bbc9ace898e44ae57da46a324031adb ;;
    mnist/t10k-images*) want=2646ac647ad5339dbf082846283269ea ;;
    mnist/train-labels*) want=a25bea736e30d166cdddb491f175f624 ;;
    mnist/t10k-labels*) want=27ae3e4e09519cfbb04c329615203637 ;;
    *) return 1 ;;
    esac
    [ "$(gzip -dc "$3" 2>/dev/null | md5sum 2>/dev/null | cut -d ' ' -f 1)" = $want ]
}

verified() { [ -r "$4" ] && { [ "$(sum_of "$4")" = "$3" ] || same_content "$1" "$2" "$4"; }; }

fetch_debian() {
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    [ -d $work/tree ] && return 0
    mkdir -p $work && (cd $work && apt-get download dataset-fashion-mnist >/dev/null 2>&1 &&
                       dpkg -x dataset-fashion-mnist*.deb tree)
}

fetch_url() { # url file
    if command -v curl >/dev/null; then
        curl -fsSL --connect-timeout 10 --max-time 600 -o "$2" "$1" 2>/dev/null
    else
        wget -q -T 10 -t 1 -O "$2" "$1" 2>/dev/null
    fi
}

get() { # set file sha256 home
    for place in ${FLOWOOD_DATA:+"$FLOWOOD_DATA/$1"} "data/$1" "../shared/data/$1" \
                 $([ "$1" = fashion ] && echo $debian); do
        if verified "$1" "$2" "$3" "$place/$2"; then
            [ "$place" = "data/$1" ] && { echo "data/$1/$2: ok"; return 0; }
            mkdir -p "data/$1"
            ln -sf "$(cd "$place" && pwd)/$2" "data/$1/$2" && echo "data/$1/$2: ok, from $place"
            return
        fi
    done
    mkdir -p "data/$1" $work
    rm -f "data/$1/$2"
    if [ "$1" = fashion ] && fetch_debian; then
        found=$(find $work/tree -name "$2" | head -n 1)
        [ -n "$found" ] && cp "$found" "data/$1/$2"
    fi
    [ -e "data/$1/$2" ] || { [ "$4" != - ] && fetch_url "$4/$2" "$work/part" &&
                             mv "$work/part" "data/$1/$2"; }
    if verified "$1" "$2" "$3" "data/$1/$2"; then
        echo "data/$1/$2: ok, fetched"
    else
        rm -f "data/$1/$2"
        rmdir "data/$1" 2>/dev/null
        echo "data/$1/$2: not found and not fetched"
        return 1
    fi
}

mkdir -p data
missing=0
while read -r set file sum home; do
    get "$set" "$file" "$sum" "$home" ||
        case $set/$file in fashion/*images* | mnist/t10k-images*) missing=1 ;; esac
done <<END
$(files)
END
if [ $missing = 1 ]; then
    echo "FashionMNIST or MNIST is missing: put the published files into data/fashion and"
    echo "data/mnist, or set FLOWOOD_DATA to a folder that has fashion/ and mnist/"
fi
exit $missing
