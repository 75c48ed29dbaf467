//! What is broken, missing or of another kind: one clear error each, and nothing lost.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::Command;

use common::{client, data, digits, fails, names, raw_file, safejax, succeeds};
use safejax::convert::{ConvertOptions, convert, open};
use safejax::load::Selection;
use safejax::{Blame, Checkpoint, Client, Error, Params, Plugin};

#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let whole = std::fs::read(digits("params.safetensors")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut.safetensors");
    let start = Checkpoint::open(digits("params.safetensors")).unwrap().data_start();
    let within_data = (start..whole.len()).step_by(9973);
    for length in (0..start + 2).chain(within_data).chain([whole.len() - 1]) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert_eq!(error.blame(), Blame::File);
        assert!(error.to_string().contains("cut.safetensors is not a valid safetensors file"), "{error}");
    }
}

#[test]
fn bytes_that_are_changed_anywhere_in_the_header_never_panic() {
    let mut file = std::fs::read(digits("params.safetensors")).unwrap();
    let start = Checkpoint::open(digits("params.safetensors")).unwrap().data_start();
    for position in 0..start {
        for flip in [0x01, 0x20, 0x80] {
            file[position] ^= flip;
            // Some changes make another valid file, such as one with another name.
            let _ = Checkpoint::from_bytes(file.clone());
            file[position] ^= flip;
        }
    }
}

#[test]
fn the_commands_name_the_file_and_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hole.safetensors");
    let header = r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
    std::fs::write(&path, raw_file(header, &[0; 8])).unwrap();
    for command in ["inspect", "load"] {
        let error = fails(safejax().arg(command).arg(&path));
        assert!(error.contains("hole.safetensors is not a valid safetensors file"), "{error}");
        assert!(error.contains("tensor `w` at 4"), "{error}");
    }
    let error = fails(safejax().args(["inspect", "/nonexistent.safetensors"]));
    assert!(
        error.contains("cannot open /nonexistent.safetensors") && error.contains("No such file"),
        "{error}"
    );
    let error = fails(safejax().args(["inspect", "/"]));
    assert!(error.contains("it is a directory, and has no checkpoint"), "{error}");
}

#[test]
fn a_plugin_path_that_is_no_plugin_says_what_it_is() {
    let refused = |path: &Path| Plugin::open(path).unwrap_err();
    let missing = refused(Path::new("/nonexistent/libpjrt.so"));
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
    let text = refused(&digits("images.npy"));
    assert!(text.to_string().contains("the system cannot load it"), "{text}");

    let directory = tempfile::tempdir().unwrap();
    let library = compile_library(directory.path(), "other", "int something_else(void) { return 1; }");
    let other = refused(&library);
    assert!(other.to_string().contains("does not export GetPjrtApi"), "{other}");
    let library = compile_library(directory.path(), "null", "void *GetPjrtApi(void) { return 0; }");
    assert!(refused(&library).to_string().contains("returned null"));
    // A table of major version 1: size, extensions, then the version's own size, extensions, major, minor.
    let code = "#include <stddef.h>\n\
                static struct { size_t s; void *e; size_t vs; void *ve; int major, minor; void *functions[200]; }\n\
                table = { sizeof table, 0, 24, 0, 1, 3 };\n\
                void *GetPjrtApi(void) { return &table; }";
    let library = compile_library(directory.path(), "major", code);
    let error = refused(&library);
    assert!(error.to_string().contains("PJRT C API 1.3"), "{error}");
    assert_eq!(error.blame(), Blame::Plugin);
    // The same through the command, and the library without a device of its own.
    let error = fails(safejax().arg("devices").arg("--plugin").arg(&library));
    assert!(error.contains("major.so cannot be used as a PJRT plugin"), "{error}");
}

/// A shared library of this C code.
fn compile_library(directory: &Path, name: &str, code: &str) -> std::path::PathBuf {
    let source = directory.join(format!("{name}.c"));
    let library = directory.join(format!("{name}.so"));
    std::fs::write(&source, code).unwrap();
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let status =
        Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(status.success());
    library
}

#[test]
fn a_large_file_that_is_cut_off_and_a_pipe_are_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.safetensors");
    let header = r#"{"w":{"dtype":"U8","shape":[99999999999],"data_offsets":[0,99999999999]}}"#;
    std::fs::write(&path, raw_file(header, &[])).unwrap();
    // Sparse: it takes no space on the disk, and must take none in memory.
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8 << 30).unwrap();
    let error = fails(safejax().arg("inspect").arg(&path));
    assert!(error.contains("tensor `w` lies at 0..99999999999"), "{error}");
    assert!(!error.contains("program"), "{error}");
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for command in ["inspect", "load", "verify"] {
        assert!(fails(safejax().arg(command).arg(&pipe)).contains("not a regular file"), "{command}");
    }
}

/// An archive of one deflated array, under this name.
fn npz(name: &str) -> Vec<u8> {
    use std::io::Write;
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    archive.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(&std::fs::read(digits("labels.npy")).unwrap()).unwrap();
    archive.finish().unwrap().into_inner()
}

#[test]
fn an_archive_can_neither_leave_its_place_nor_fill_the_memory() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let path = inner.join("a.npz");
    std::fs::write(&path, npz("../escaped.npy")).unwrap();
    // The name is a key, and no file of that name is made.
    succeeds(safejax().arg("convert").arg(&path).arg(inner.join("a.safetensors")));
    assert_eq!(names(directory.path()), ["inner"]);
    assert_eq!(names(&inner), ["a.npz", "a.safetensors"]);
    // One that says that its few bytes are four gigabytes.
    let mut bomb = npz("labels.npy");
    let central = bomb.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    bomb[central + 24..central + 28].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    std::fs::write(&path, &bomb).unwrap();
    let error = fails(safejax().arg("inspect").arg(&path));
    assert!(
        error.contains("`labels`: it would expand from") && error.contains("4294967280 bytes"),
        "{error}"
    );
    for length in (0..bomb.len()).step_by(7) {
        std::fs::write(&path, &bomb[..length]).unwrap();
        fails(safejax().arg("convert").arg(&path).arg(inner.join("b.safetensors")));
    }
    std::fs::write(&path, npz("labels.txt")).unwrap();
    assert!(
        fails(safejax().arg("inspect").arg(&path)).contains("no arrays: `labels.txt`: it is no .npy file")
    );
}

#[test]
fn an_npy_file_of_thousands_of_dimensions_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.npy");
    let header =
        format!("{{'descr': '<f4', 'fortran_order': True, 'shape': ({}), }}\n", "1, ".repeat(20_000));
    let length = (header.len() as u32).to_le_bytes();
    std::fs::write(&path, [b"\x93NUMPY\x02\x00", &length[..], header.as_bytes(), &[0; 4]].concat()).unwrap();
    let error = fails(safejax().arg("inspect").arg(&path));
    assert!(error.contains("it has 20000 dimensions, and NumPy's arrays have at most 64"), "{error}");
}

#[test]
fn arrays_in_chunks_within_each_other_do_not_end_the_stack() {
    let key = b"__msgpack_chunked_array__";
    // {mark: true, 'shape': {'0': the same again …
    let level: Vec<u8> = [&[0x83, 0xb9][..], key, &[0xc3, 0xa5], b"shape", &[0x81, 0xa1], b"0"].concat();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep.msgpack");
    std::fs::write(&path, level.repeat(8000)).unwrap();
    let error = fails(safejax().arg("inspect").arg(&path));
    assert!(error.contains("nested deeper than 128 levels"), "{error}");
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = safejax().arg("inspect").arg(digits("params.safetensors")).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(common::stderr(&output).contains("the output cannot be written"));
}

#[test]
fn a_plugin_that_aborts_does_not_take_the_report_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let package = directory.path().join("lammps_jax_pjrt_cpu");
    std::fs::create_dir(&package).unwrap();
    let code = "#include <stdlib.h>\n__attribute__((constructor)) static void crash(void) { abort(); }";
    let library = compile_library(directory.path(), "aborts", code);
    let installed = package.join("pjrt_c_api_cpu_plugin.so");
    std::fs::rename(library, &installed).unwrap();
    let report = succeeds(safejax().arg("doctor").env("PYTHONPATH", directory.path()));
    assert!(report.contains("does not work: its process ended with signal: 6"), "{report}");
    assert!(report.contains("client\n"), "{report}");
    // Nor the command that lists its devices.
    let home = tempfile::tempdir().unwrap();
    let error =
        fails(safejax().args(["devices", "--plugin"]).arg(&installed).env("SAFEJAX_HOME", home.path()));
    assert!(error.contains("does not work") && error.contains("its process ended with signal"), "{error}");
    assert!(!home.path().join("tried").exists(), "what does not work is tried again");
}

#[test]
fn the_variable_decides_which_plugin_even_where_a_device_is_named() {
    let mut command = safejax();
    command.arg("load").arg(digits("params.safetensors")).args(["--device", "cpu:0"]);
    let error = fails(command.env("SAFEJAX_PLUGIN", "/nonexistent/libpjrt.so"));
    assert!(error.contains("cannot open plugin /nonexistent/libpjrt.so"), "{error}");
}

#[test]
fn a_device_that_does_not_exist_is_an_error_that_says_how_many_there_are() {
    let error = fails(safejax().arg("load").arg(digits("params.safetensors")).args(["--device", "cpu:77"]));
    assert!(error.contains("there is no device cpu:77; this client has"), "{error}");
    let error = fails(safejax().arg("devices").args(["--plugin", "cpu", "--option", "nothing=1"]));
    assert!(error.contains("Unexpected option name"), "{error}");
    let usage = safejax().args(["devices", "--option", "nothing"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn a_plugin_name_that_does_not_exist_lists_those_that_do() {
    let error = fails(safejax().args(["devices", "--plugin", "cuda14"]));
    assert!(
        error.contains("there is no plugin `cuda14`; did you mean") && error.contains("`cuda13`"),
        "{error}"
    );
    let error = fails(safejax().args(["plugin", "install", "metal"]));
    assert!(
        error.contains("there are cpu, cuda13, cuda13-compiler, cuda12, rocm, rocm10, oneapi, tt, tpu"),
        "{error}"
    );
}

#[test]
fn a_plugin_that_is_nowhere_lists_every_place_and_the_command_that_helps() {
    let home = tempfile::tempdir().unwrap();
    let command = |arguments: &[&str]| {
        let mut command = safejax();
        command
            .args(arguments)
            .env("SAFEJAX_HOME", home.path())
            .env("SAFEJAX_OFFLINE", "1")
            .env("HOME", home.path());
        command.env_remove("SAFEJAX_PLUGIN").env("PATH", "/usr/bin:/bin").env_remove("VIRTUAL_ENV");
        command
    };
    let error = fails(&mut command(&["devices", "--plugin", "cpu"]));
    assert!(error.contains("no PJRT plugin for `cpu` was found"), "{error}");
    // What is forbidden is not all that is proposed.
    assert!(error.contains("SAFEJAX_OFFLINE forbids installing") && error.lines().count() <= 3, "{error}");
    let error = fails(&mut command(&["plugin", "install", "cpu"]));
    assert!(error.contains("SAFEJAX_OFFLINE forbids installing"), "{error}");
    assert!(names(home.path()).is_empty(), "nothing was made");
    // Without anything at all, a bug report is still possible.
    let report = succeeds(&mut command(&["doctor"]));
    assert!(report.contains("no PJRT plugin for `cpu` was found"), "{report}");
    let nothing = format!("looked at the cache: nothing at {}", home.path().join("plugins/cpu-").display());
    assert!(report.contains(&nothing), "{report}");
}

#[test]
fn saving_where_there_is_no_directory_is_an_error_that_names_the_file() {
    let params = Params::load(client(), digits("params.safetensors")).unwrap();
    let error = params.save("/nonexistent/directory/a.safetensors").unwrap_err();
    assert_eq!(error.to_string(), "cannot create /nonexistent/directory/a.safetensors");
    assert_eq!(error.blame(), Blame::System);
    let error = params.save(std::env::temp_dir()).unwrap_err().to_string();
    assert!(error.contains("cannot write"), "{error}");
}

#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    // A file system of 256 kB of its own, in a namespace of its own; the digits fit once, not twice.
    let script = r#"
        mount -t tmpfs -o size=256k none "$1" || exit 77
        "$2" convert "$3" "$1/a.safetensors" > /dev/null || exit 1
        before=$(cksum < "$1/a.safetensors")
        "$2" convert "$3" "$1/a.safetensors" 2> "$1/../stderr" && exit 2
        test "$before" = "$(cksum < "$1/a.safetensors")" || exit 3
        test "$(ls -A "$1")" = a.safetensors || exit 4
        cat "$1/../stderr"
    "#;
    let mount = directory.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(&mount)
        .arg(common::binary())
        .arg(digits("params.safetensors"))
        .output();
    let output = match output {
        Ok(output) if output.status.code() == Some(77) => {
            return eprintln!("skipped: no mount namespaces here");
        }
        Err(error) => return eprintln!("skipped: unshare does not run here: {error}"),
        Ok(output) if common::stderr(&output).contains("unshare failed") => {
            return eprintln!("skipped: no user namespaces here");
        }
        Ok(output) => output,
    };
    assert!(output.status.success(), "{:?} {}", output.status, common::stderr(&output));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains("No space left on device"), "{printed}");
}

#[test]
fn a_conversion_that_cannot_be_made_leaves_the_target_alone() {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("a.safetensors");
    std::fs::write(&target, "old").unwrap();
    let input = open(digits("params.safetensors"), &Selection::default()).unwrap();
    let mut options = ConvertOptions::default();
    options.dtypes = vec![("*".into(), safejax::DType::F8E5M2)];
    let error = convert(&input, &target, &options).unwrap_err();
    assert!(matches!(&error, Error::Tensor { tensor, .. } if tensor.starts_with("params.")), "{error}");
    options.dtypes.clear();
    options.alignment = 100;
    assert!(convert(&input, &target, &options).is_err());
    let error = convert(&input, &target.with_extension("bin"), &options).unwrap_err().to_string();
    assert!(error.contains("does not end in .safetensors"), "{error}");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "old");
    assert_eq!(names(directory.path()), ["a.safetensors"]);
}

#[test]
fn a_program_is_not_a_checkpoint_and_a_checkpoint_is_not_a_program() {
    assert!(Checkpoint::open(data("affine.stablehlo")).is_err());
    assert!(safejax::Program::open(digits("params.safetensors")).is_err());
    let error = fails(safejax().arg("inspect").arg(digits("../digits.rs")));
    assert!(
        error.contains("not a valid safetensors file") && error.contains("not a valid program"),
        "{error}"
    );
}

#[test]
fn a_library_path_that_is_asked_for_is_the_only_one_that_is_tried() {
    let error = Client::from_plugin("/nonexistent/libpjrt.so").unwrap_err().to_string();
    assert_eq!(error, "cannot open plugin /nonexistent/libpjrt.so");
    let error = fails(safejax().arg("devices").env("SAFEJAX_PLUGIN", "/nonexistent/libpjrt.so"));
    assert!(error.contains("cannot open plugin /nonexistent/libpjrt.so"), "{error}");
}

/// A file with one tensor, whose name would forge a line and move the cursor.
fn write_hostile_names(path: &Path) {
    let header = "{\"__metadata__\":{\"k\\u001b[2J\":\"v\\n\\u009b1m\"},\"a\\n0000  b\\u001b]0;x\\u0007\\u202e\":\
        {\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    std::fs::write(path, raw_file(header, &[0; 4])).unwrap();
}

#[test]
fn names_reach_the_terminal_on_one_line_and_without_what_it_would_obey() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("names.safetensors");
    write_hostile_names(&path);
    let is_obeyed = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    let digits = digits("params.safetensors");
    let path = path.to_str().unwrap();
    let commands: [&[&str]; 7] = [
        &["inspect", path],
        &["verify", "--hash", path],
        &["load", "--explain", path],
        &["load", "--verify", path],
        &["load", "--rename", "a=b", "--include", "x", path],
        &["diff", path, digits.to_str().unwrap()],
        &["convert", path, "/nonexistent/x.npy"],
    ];
    for arguments in commands {
        let output = safejax().args(arguments).output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
        assert!(!printed.contains(is_obeyed), "{arguments:?}: {printed:?}");
        assert!(!printed.lines().any(|line| line.starts_with("0000  b")), "{arguments:?}: {printed}");
        let json = safejax().args(arguments).arg("--json").output().unwrap().stdout;
        assert!(!String::from_utf8(json).unwrap().contains(|c: char| c.is_control() && c != '\n'));
    }
    let listed = succeeds(safejax().args(["verify", "--hash", path]));
    assert!(listed.contains(r"  a\n0000  b\u{1b}]0;x\u{7}\u{202e}"), "{listed}");
}
