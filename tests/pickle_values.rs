//! What pickles say, opcode by opcode, and what is refused of them.

use safejax::Error;
use safejax::convert::{Source, open};

fn source(bytes: &[u8]) -> Result<Source, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.pkl");
    std::fs::write(&path, bytes).unwrap();
    open(&path, &Default::default()).map_err(|error| match error {
        Error::Malformed { problem, .. } => problem,
        other => other.to_string(),
    })
}

fn problem(bytes: &[u8]) -> String {
    source(bytes).err().unwrap()
}

#[test]
fn what_could_run_code_is_refused_by_name() {
    assert!(problem(b"\x80\x02cos\nsystem\n.").contains("its value is the function or class os.system"));
    assert!(problem(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").contains("is an object of os.system"));
    assert!(problem(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.").contains("builtins.eval"));
    // {'a': [set()]}, in which nothing is lost.
    let set = source(b"\x80\x04}\x8c\x01a]\x8fas.").unwrap();
    assert!(set.left_out()[0].why.contains("it is an object of set"), "{:?}", set.left_out());
    assert!(problem(b"\x80\x02(i").contains("INST"));
    assert!(problem(b"\x80\x02N)\x81.").contains("something is called that is no function"));
    assert!(problem(b"\x80\x02Px\n").contains("PERSID"));
    assert!(problem(b"\x80\x02\x82\x01").contains("EXT"));
}

#[test]
fn what_follows_a_pickle_and_arrays_of_unknown_types_are_told_of() {
    let two = source(b"\x80\x02}X\x01\x00\x00\x00aK\x05s.\x80\x02}.").unwrap();
    assert!(two.left_out()[0].why.contains("4 bytes follow"), "{:?}", two.left_out());
    // {'a': an array of a type of ml_dtypes that is not known}
    let unknown = b"\x80\x02}X\x01\x00\x00\x00acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R\
        (K\x01K\x01\x85cnumpy\ndtype\ncml_dtypes\nfloat7\nK\x00K\x01\x87R\x89U\x01xtbs.";
    let unknown = source(unknown).unwrap();
    assert!(unknown.left_out()[0].why.contains("ml_dtypes.float7"), "{:?}", unknown.left_out());
}

#[test]
fn damage_is_an_error() {
    assert!(problem(b"\x80\x02]").contains("cut off"));
    assert!(problem(b"\x80\x02.").contains("stack is empty"));
    assert!(problem(b"\x80\x02h\x00.").contains("nothing is remembered"));
    assert!(problem(b"\x80\x02]K\x01K\x01s.").contains("no dictionary"));
    assert!(problem(b"\x80\x02X\xff\xff\xff\xff.").contains("cut off"));
    let lists = [&b"\x80\x02"[..], &[b']'; 100_000], &[b'a'; 99_999], b"."].concat();
    let tuples = [&b"\x80\x02N"[..], &[0x85; 100_000], b"."].concat();
    assert!(problem(&lists).contains("nested deeper") && problem(&tuples).contains("nested deeper"));
    // A list in itself.
    assert!(problem(b"\x80\x02]q\x00h\x00a.").contains("nested deeper"));
    // Doubling itself forty times over.
    let mut bomb = b"\x80\x02]N".to_vec();
    bomb.push(b'a');
    for round in 0..40u8 {
        bomb.extend([b'q', round, b'h', round, 0x86]);
    }
    bomb.push(b'.');
    assert!(problem(&bomb).contains("too often"));
}

#[test]
fn what_is_shared_is_whole_wherever_it_stands() {
    // d = {'w': 5}; l = [1]; pickle.dumps({'a': d, 'b': d, 'c': l, 'd': l}, 2)
    let file = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01}q\x02X\x01\x00\x00\x00wq\x03K\x05sX\x01\x00\x00\x00bq\x04h\x02\
        X\x01\x00\x00\x00cq\x05]q\x06K\x01aX\x01\x00\x00\x00dq\x07h\x06u.";
    let source = source(file).unwrap();
    assert_eq!(source.keys().def().to_string(), "{'a': {'w': *}, 'b': {'w': *}, 'c': [*], 'd': [*]}");
    assert_eq!(&source.read(1).unwrap()[..], 5i64.to_le_bytes());
}

#[test]
fn plain_values_become_a_tree() {
    // pickle.dumps({'a': 5, 'b': [None, True]}, 2)
    let file = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x05X\x01\x00\x00\x00bq\x02]q\x03(N\x88eu.";
    let source = source(file).unwrap();
    assert_eq!(source.keys().def().to_string(), "{'a': *, 'b': [None, *]}");
    assert_eq!(&source.read(0).unwrap()[..], 5i64.to_le_bytes());
    assert_eq!(&source.read(1).unwrap()[..], [1]);
}

#[test]
fn an_array_whose_dimensions_were_turned_is_what_numpy_reads() {
    // NumPy 2.4.6: pickle.dumps({'perm': np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 0, 2)}, 5)
    let file = b"\x80\x05\x95\x9a\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x04perm\x94\x8c\x13numpy._core.numeric\x94\
        \x8c\x0b_frombuffer\x94\x93\x94(\x96\x18\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\
        \t\n\x0b\x0c\r\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x94\x8c\x05numpy\x94\x8c\x05dtype\x94\x93\x94\
        \x8c\x02u1\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t\x94b\
        K\x02K\x03K\x04\x87\x94\x8c\x01K\x94K\x01K\x00K\x02\x87\x94t\x94R\x94s.";
    let perm = source(file).unwrap();
    assert_eq!(perm.specs()[0].to_string(), "uint8[3,2,4]");
    let expected: Vec<u8> = [0u8, 12, 4, 16, 8, 20].iter().flat_map(|&start| start..start + 4).collect();
    assert_eq!(&perm.read(0).unwrap()[..], expected);
    let wrong = file.windows(6).position(|six| six == b"K\x01K\x00K\x02").unwrap();
    let mut twice = file.to_vec();
    twice[wrong + 3] = 1;
    assert!(problem(&twice).contains("no order of its dimensions"));
}
