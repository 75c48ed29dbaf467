//! What loading the digits' params and calling their program costs on the CPU plugin.
//!
//! ```text
//! cargo bench
//! ```

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use divan::Bencher;
use safejax::format::npy;
use safejax::load::Sharing;
use safejax::pjrt::Input;
use safejax::{Buffer, Client, Function, LoadOptions, Params, Placement, Program};

fn main() {
    divan::main();
}

fn digits(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits").join(name)
}

static CLIENT: LazyLock<Client> = LazyLock::new(|| Client::cpu().unwrap());

/// The params as we write them: aligned, so that the device uses the file in place.
static ALIGNED: LazyLock<tempfile::NamedTempFile> = LazyLock::new(|| {
    let file = tempfile::NamedTempFile::new().unwrap();
    Params::load(&CLIENT, digits("params.safetensors")).unwrap().save(file.path()).unwrap();
    file
});

struct Model {
    function: Function,
    params: Params,
    images: Buffer,
}

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let images = npy::read(digits("images.npy"), None).unwrap();
    let to = Placement::from(&CLIENT.device(0).unwrap());
    Model {
        function: CLIENT.compile(&Program::open(digits("forward.stablehlo")).unwrap()).unwrap(),
        params: Params::load(&CLIENT, digits("params.safetensors")).unwrap(),
        images: CLIENT.buffer_from_slice(images.spec(), images.bytes(), &to).unwrap(),
    }
});

#[divan::bench]
fn load_in_place(bencher: Bencher) {
    let path = ALIGNED.path();
    bencher.bench(|| Params::load(&CLIENT, path).unwrap().wait().unwrap());
}

#[divan::bench]
fn load_by_copy(bencher: Bencher) {
    let (path, options) = (ALIGNED.path(), LoadOptions::default().sharing(Sharing::Never));
    bencher.bench(|| Params::load_with(&CLIENT, path, &options).unwrap().0.wait().unwrap());
}

#[divan::bench]
fn call_the_function(bencher: Bencher) {
    let Model { function, params, images } = &*MODEL;
    bencher.bench(|| function.call(&[params, images]).unwrap().wait().unwrap());
}

/// The same without flattening and checking the arguments.
#[divan::bench]
fn call_the_executable(bencher: Bencher) {
    let Model { function, params, images } = &*MODEL;
    bencher.bench(|| {
        let params = params.arrays().iter().map(|array| array.buffer().unwrap());
        let inputs = params.chain([images]).map(Input::Borrow).collect();
        let execution = function.executable().unwrap().execute(&[inputs]).unwrap();
        execution.outputs[0][0].wait().unwrap();
    });
}
