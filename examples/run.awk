# The tables of run.sh from out/table.jsonl: -v what=detector or -v what=paper. With json.awk.

# Behind the name of an object with a number for each rate of alarms.
function rate(name, alpha) { return 100 * value(substr($0, index($0, "\"" name "\": ")), alpha) }

{
    preset = value($0, "preset"); score = value($0, "score")
    n = split(value($0, "ood"), part, "/")
    ood = n > 1 ? part[n - 1] : part[n]
    if (!(ood in known)) { known[ood] = 1; set[++sets] = ood }
    auroc[preset, score, ood] = value($0, "auroc")
    if (score == "detector") {
        found[ood] = sprintf("%7.1f %% %7.1f %%", rate("power", "0.01"), rate("power", "0.05"))
        alarms = sprintf("%.2f %% at 1 %%, %.2f %% at 5 %%", rate("false_alarms", "0.01"),
                         rate("false_alarms", "0.05"))
        n_in = value($0, "n_in")
    } else
        row[++rows] = sprintf("%-18s %-13s %8.3f %8.3f %8.3f %8.3f", preset, ood,
                              value($0, "bpd_in"), value($0, "bpd_ood"), value($0, "auroc"),
                              value($0, "fpr95"))
}

END {
    if (what == "paper") {
        print "The paper's table: the likelihood alone. 0.5 is chance, below it the OOD set looks"
        print "likelier than what the flow was trained on."
        printf "\n%-18s %-13s %8s %8s %8s %8s\n", "preset", "ood", "bpd in", "bpd ood", "auroc",
               "fpr95"
        for (i = 1; i <= rows; i++) print row[i]
        exit
    }
    print "AUROC: the chance that an image of the set scores higher than one of the test set."
    print "Found: the share of the set that the detector calls out of distribution, at 1 % and 5 %"
    print "of false alarms. It was calibrated on held-out training images and saw no others."
    printf "\n%-14s %12s %12s %12s %9s %9s\n", "", "likelihood", "likelihood", "detector", "found",
           "found"
    printf "%-14s %12s %12s %12s %9s %9s\n", "set", "realnvp-tiny", "mlp-cycle", "mlp-cycle",
           "at 1 %", "at 5 %"
    for (i = 1; i <= sets; i++)
        printf "%-14s %12.3f %12.3f %12.3f %s\n", set[i],
               auroc["realnvp-tiny", "likelihood", set[i]],
               auroc["mlp-cycle", "likelihood", set[i]],
               auroc["mlp-cycle", "detector", set[i]], found[set[i]]
    printf "\nFalse alarms on the %d test images: %s.\n", n_in, alarms
}
