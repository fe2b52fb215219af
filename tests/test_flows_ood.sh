#!/bin/sh
# examples/from_flows_ood.py: each state_dict of tests/golden becomes its fixture to the last byte,
# and what does not fit is refused in one line. test_image.c scores the fixtures.
if ! python3 -c 'import torch' 2> /dev/null; then
    echo "test_flows_ood: python3 with torch is not here"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
OMP_NUM_THREADS=1 python3 -W ignore - "$dir" << 'END'
import contextlib, io, json, pathlib, struct, subprocess, sys
import torch
sys.path.insert(0, "examples")
sys.dont_write_bytecode = True
import from_flows_ood as script

golden, folder, tool = pathlib.Path("tests/golden"), pathlib.Path(sys.argv[1]), "build/flowood"
passed, failed, out = 0, 0, str(folder / "out.st")


def check(good, what):
    global passed, failed
    passed, failed = passed + bool(good), failed + (not good)
    if not good:
        print("test_flows_ood: failed:", what)


def run(state, options):
    """What the script says; None when it is content."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            script.main([str(state), out, *options.split()])
    except script.Refused as error:
        return str(error)


with open(golden / "flows_ood.safetensors", "rb") as file:
    models = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))["__metadata__"]
check(len(models) == 9, "9 models")
for name, options in models.items():
    said = run(golden / f"flows_ood_{name}.pt", options)
    want = (golden / f"flows_ood_{name}.safetensors").read_bytes()
    check(said is None and pathlib.Path(out).read_bytes() == want, f"{name}: {said}")
    if pathlib.Path(tool).exists() and name != "tabular":
        done = subprocess.run([tool, "sample", "--model", out, "--n", "1", "--out",
                               str(folder / "out.png")], capture_output=True, text=True)
        check(done.returncode == 0, f"the tool on {name}: {done.stderr}")

state = torch.load(golden / "flows_ood_highway.pt")
glow = models["highway"]
for what, saved, options, words in (
        ("nested", {"net": state, "epoch": 3}, glow, None),
        ("key", {"net": state, "average": state}, glow + " --key average", None),
        ("prefix", {"module." + name: value for name, value in state.items()}, glow, None),
        ("two", {"net": state, "average": state}, glow, "choose by --key from net, average"),
        ("more", {**state, "prior.mean": torch.zeros(3)}, glow, "have no place"),
        ("gate", {**state, "body.1.2.st_net.extra": torch.zeros(3)}, glow, "st_net.extra"),
        ("other", {"fc.weight": torch.zeros(3, 2)}, glow, "named st_net"),
        ("list", [1, 2], glow, "0 were found")):
    torch.save(saved, folder / "state.pt")
    said = run(folder / "state.pt", options)
    check(words in said if words and said else said == words, f"{what}: {said}")
    if words is None:
        want = (golden / "flows_ood_highway.safetensors").read_bytes()
        check(pathlib.Path(out).read_bytes() == want, what)
for state, options, words in (
        ("tests/test_flows_ood.sh", glow, "save the state_dict alone"),
        (golden / "flows_ood_horizontal.pt", "--model realnvp", "4, 10 or 16"),
        (golden / "flows_ood_cycle.pt", "--model cycle --masks 0,1,2,3,0", "5 numbers for 4")):
    check(words in str(run(state, options)), f"{state} {options}")
print(f"{passed} passed, {failed} failed")
sys.exit(failed > 0)
END
