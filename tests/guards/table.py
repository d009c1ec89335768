"""What was seen once, the guard that now stands before it, and the tests that hold the guard.

A test that passes without its guard proves nothing. `python -m tests.guards` takes each guard away
in turn and wants its tests to fail.
"""

from __future__ import annotations

from typing import NamedTuple

RUNTIME, READERS = "sjepa_fast/runtime", "sjepa_fast/data/readers"
CHECKPOINT = "tests/runtime/test_checkpoint.py::test_"
ENDINGS = "tests/test_train_endings.py::test_"
HEALTH = "tests/training/test_run_health.py::test_"
FUZZ = "tests/fuzz/test_fuzz.py::test_no_input_is_a_defect"


class Guard(NamedTuple):
    """Code that is taken out of a file, what takes its place, and the tests that then fail."""

    seen: str
    file: str
    guard: str
    without: str
    tests: tuple[str, ...]


GUARDS = (
    Guard(
        "a moment of another shape ended the process",
        f"{RUNTIME}/checkpoint.py",
        "    check_tensors(path, stored, wanted)\n",
        "",
        (f"{CHECKPOINT}a_state_that_does_not_fit_is_refused_whatever_its_checksums_say",),
    ),
    Guard(
        "flipped bits in tensors were accepted",
        f"{RUNTIME}/manifest.py",
        'if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:',
        "if False:",
        (
            f"{CHECKPOINT}every_flipped_bit_is_seen",
            f"{ENDINGS}a_refused_checkpoint_is_named_and_the_run_goes_on_from_the_one_before",
        ),
    ),
    Guard(
        "a renamed folder was accepted",
        f"{RUNTIME}/manifest.py",
        "if folder.name != folder_name(manifest.step):",
        "if False:",
        (f"{CHECKPOINT}a_refused_checkpoint_is_named_and_the_one_before_is_used",),
    ),
    Guard(
        "a damaged newest checkpoint ended the run",
        f"{RUNTIME}/checkpoint.py",
        "            refused.append((checkpoint, error))\n",
        "            raise error\n",
        (
            f"{CHECKPOINT}a_refused_checkpoint_is_named_and_the_one_before_is_used",
            f"{ENDINGS}a_refused_checkpoint_is_named_and_the_run_goes_on_from_the_one_before",
        ),
    ),
    Guard(
        "a gradient that is NaN at a step that saves, or at the last one, was saved",
        "sjepa_fast/training/step.py",
        "        self.skip.copy_(bad)\n",
        "",
        (f"{HEALTH}broken_gradients_reach_no_checkpoint", "tests/training/test_skipped_steps.py"),
    ),
    Guard(
        "broken weights replaced good ones, and the run ended with 0",
        "sjepa_fast/training/loop.py",
        "sound = self.health.may_save(setup.model, setup.optimizer, setup.world)",
        "sound = True",
        (f"{HEALTH}weights_that_are_broken_already_are_not_saved",),
    ),
    Guard(
        "a run of NaN went on to its end",
        "sjepa_fast/training/health.py",
        "if self.in_a_row >= self.max_skipped:",
        "if False:",
        (
            f"{HEALTH}a_run_that_only_skips_stops_with_a_diagnosis",
            f"{HEALTH}so_many_in_a_row_stop_a_run_and_fewer_do_not",
        ),
    ),
    Guard(
        "rows of metrics with NaN were no JSON",
        f"{RUNTIME}/logging.py",
        'self.file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\\n")',
        'self.file.write(json.dumps({"step": step, **values}) + "\\n")',
        (f"{ENDINGS}metrics_are_json_whatever_the_values_are",),
    ),
    Guard(
        "two runs wrote over each other",
        f"{RUNTIME}/lock.py",
        "            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "",
        (
            f"{ENDINGS}a_run_has_one_owner",
            "tests/runtime/test_lock.py::test_a_second_owner_is_told_who_the_first_is",
        ),
    ),
    Guard(
        "folders of killed writers stayed for ever",
        "sjepa_fast/train.py",
        '    remove_leftovers(config.run / "checkpoints", "step-*")\n',
        "",
        (f"{ENDINGS}what_killed_writers_left_is_removed_at_the_next_start",),
    ),
    Guard(
        "SIGHUP ended a run without a save",
        f"{RUNTIME}/signals.py",
        "SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)",
        "SIGNALS = (signal.SIGINT, signal.SIGTERM)",
        # In a process of its own, which without the guard is gone.
        (f"{ENDINGS}a_run_whose_output_is_gone_is_saved_too[1]",),
    ),
    Guard(
        "SIGTERM and Ctrl-C had one exit code",
        f"{RUNTIME}/signals.py",
        "return 0 if self.stop is None else 128 + self.stop",
        "return 0 if self.stop is None else 130",
        (f"{ENDINGS}a_stopped_run_goes_on_to_the_rows_and_weights_of_one_that_was_not[6-15-143]",),
    ),
    Guard(
        "a second Ctrl-C waited for the save",
        f"{RUNTIME}/signals.py",
        "if number == signal.SIGINT and self.heard is not None and alone:",
        "if False:",
        (f"{ENDINGS}a_second_ctrl_c_leaves_at_once_and_says_what_is_saved",),
    ),
    Guard(
        "a stopped run had other rows than one that was not stopped",
        "sjepa_fast/training/recorder.py",
        "            self.logged_step -= train_step.remember(setup.recent_K3, setup.start)\n",
        "            pass\n",
        (f"{ENDINGS}a_stopped_run_goes_on_to_the_rows_and_weights_of_one_that_was_not[3-2-130]",),
    ),
    Guard(
        "a run folder that was deleted was made again, or ended in a traceback",
        f"{RUNTIME}/logging.py",
        "if os.fstat(self.file.fileno()).st_nlink == 0:",
        "if False:",
        (f"{ENDINGS}a_run_folder_deleted_while_running_is_one_line",),
    ),
    Guard(
        "an empty `data.json` or a bad row ended in a traceback",
        "sjepa_fast/opening.py",
        "    except (ValueError, RecursionError) as error:\n"
        '        reason = "nested too deeply" if',
        '    except ZeroDivisionError as error:\n        reason = "nested too deeply" if',
        (f"{ENDINGS}damaged_files_of_a_run_are_one_line[data.json--data.json is not JSON]",),
    ),
    Guard(
        "memory that loses a bit was trusted",
        "sjepa_fast/training/verify.py",
        "        if max(found) == 0:\n",
        "        if True:\n",
        ("tests/training/test_verify.py",),
    ),
    Guard(
        "ragged `.npz`: 281 tracebacks",
        f"{READERS}/ragged_npz.py",
        "    with readable(path), Npz(path) as archive:\n        data =",
        "    with Npz(path) as archive:\n        data =",
        (f"{FUZZ}[reader-ragged]",),
    ),
    Guard(
        "CTR-GCN's `.npz`: 271 tracebacks",
        f"{READERS}/ctrgcn_npz.py",
        "    with readable(raw), Npz(raw) as archive:\n        lacks",
        "    with Npz(raw) as archive:\n        lacks",
        (f"{FUZZ}[reader-ctrgcn]",),
    ),
    Guard(
        "a folder of clips: 155 tracebacks",
        f"{READERS}/own_clip.py",
        "    except Unreadable as error:\n        return Found(None, str(error))",
        "    except ZeroDivisionError as error:\n        return Found(None, str(error))",
        (f"{FUZZ}[reader-generic-npy]", f"{FUZZ}[reader-generic-json]"),
    ),
    Guard(
        "`ntu --missing`: 121 tracebacks",
        f"{READERS}/ntu.py",
        '    except Unreadable as error:\n        raise InputError("missing"',
        '    except ZeroDivisionError as error:\n        raise InputError("missing"',
        (f"{FUZZ}[reader-ntu-missing]",),
    ),
    Guard(
        "PKU-MMD as cut clips: 97 tracebacks",
        f"{READERS}/pku.py",
        "            except ValueError as error:  # of the text, or Unreadable\n",
        "            except ZeroDivisionError as error:\n",
        (f"{FUZZ}[reader-pku-cut]",),
    ),
    Guard(
        "PKU-MMD: 10 tracebacks",
        f"{READERS}/pku.py",
        "    except ValueError as error:  # of the text, or Unreadable\n        return str(error)",
        "    except ZeroDivisionError as error:\n        return str(error)",
        (f"{FUZZ}[reader-pku]",),
    ),
    Guard(
        "pyskl: 7 tracebacks",
        f"{READERS}/pyskl.py",
        "    try:\n        return load_plain(path)\n    except Unreadable as error:",
        "    try:\n        return load_plain(path)\n    except ZeroDivisionError as error:",
        (f"{FUZZ}[reader-pyskl]",),
    ),
    Guard(
        "a hostile store with right checksums: 592 of 2,100",
        "sjepa_fast/data/store.py",
        "        check_arrays(arrays, manifest, layout)\n",
        "        pass\n",
        (f"{FUZZ}[store]", "tests/data/test_store_schema.py"),
    ),
    Guard(
        "a 4 MB file of CTR-GCN's took 4.3 GiB, a 3 MB one 6.3",
        f"{READERS}/ctrgcn_npz.py",
        'rows = archive.blocks(f"x_{part}", repeat(1, len(labels)), MAX_NUMBERS)',
        'rows = list(archive.blocks(f"x_{part}", repeat(1, len(labels)), MAX_NUMBERS))',
        ("tests/data/readers/test_bombs.py",),
    ),
    Guard(
        "YAML aliases of 467 bytes",
        "sjepa_fast/config/plain_yaml.py",
        'if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:',
        "if False:",
        ("tests/config/test_hostile.py::test_yaml_that_is_no_configuration_is_one_line",),
    ),
    Guard(
        "`depth: 1e8` was built",
        "sjepa_fast/config/validation.py",
        "        if size > largest:\n",
        "        if False:\n",
        (
            "tests/config/test_hostile.py::test_sizes_have_bounds",
            "tests/evaluation/test_hostile.py::test_a_run_that_no_machine_could_build_is_refused",
        ),
    ),
    Guard(
        "a FIFO named `.json` was waited for, for ever",
        "sjepa_fast/opening.py",
        "    if stat.S_ISREG(mode):\n        return handle\n",
        "    return handle\n",
        ("tests/test_opening.py::test_what_is_no_regular_file_is_refused_at_once",),
    ),
    Guard(
        "a store named `/../../../OWNED` made `evaluate` write outside of the run",
        "sjepa_fast/names.py",
        "    if cut == name and cut:\n        return name\n",
        "    return name\n",
        (
            "tests/evaluation/test_hostile.py::test_a_result_stays_in_its_run_whatever_the_names",
            "tests/test_names.py::test_a_file_name_is_one_visible_part_of_a_path",
        ),
    ),
    Guard(
        "names reached the terminal raw",
        "sjepa_fast/names.py",
        'escaped = "".join(char if char.isprintable() else _escape(ord(char)) for char in kept)',
        "escaped = kept",
        (
            "tests/evaluation/test_hostile.py::test_a_result_stays_in_its_run_whatever_the_names",
            "tests/test_names.py::test_printable_text_has_nothing_that_a_terminal_obeys",
        ),
    ),
    Guard(
        "a BVH file of 60 MB took 2.8 GiB and 37 seconds",
        f"{READERS}/mocap.py",
        "    _check_bvh(data)\n",
        "",
        ("tests/data/readers/test_bombs.py",),
    ),
    Guard(
        "where one process ended, the others did with a traceback",
        "sjepa_fast/cli.py",
        "        if line is None:\n            raise\n",
        "        raise\n",
        ("tests/test_elastic.py::test_where_one_process_ends_the_others_say_so_in_one_line",),
    ),
    Guard(
        "weights that cannot be trained pushed those out that can",
        "sjepa_fast/training/loop.py",
        "drop = self.health.in_a_row == 0",
        "drop = True",
        (f"{HEALTH}while_steps_are_skipped_no_older_checkpoint_is_dropped",),
    ),
    Guard(
        "a NaN in a clip ended in `LinAlgError`, or in NaN",
        "sjepa_fast/data/clips.py",
        "    check_finite(clips.joints_RVC, clips.offsets_N, store.names)\n",
        "",
        ("tests/data/test_finite.py::test_training_names_a_clip_of_a_hostile_store",),
    ),
)
