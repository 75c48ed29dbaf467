//! The binding against a real plugin: transfers, events, executions, and what it refuses.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use common::{Only, client, first_device, is_cpu, is_skipped, other_client};
use safejax::pjrt::{DmaRegion, HostMemory, Input, NamedValue, ProgramFormat, TransferPart};
use safejax::{
    ArraySpec, CompileOptions, DType, Donate, Error, ErrorCode, HostArray, HostSemantics, Placement, Plugin,
    Program,
};

/// Bytes that say when they are dropped.
struct Watched(Vec<u8>, Arc<AtomicBool>);

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.1.store(true, Ordering::SeqCst);
    }
}

/// Bytes at a multiple of 64, as XLA:CPU needs them to use them in place.
fn aligned(count: usize, dropped: &Arc<AtomicBool>) -> Bytes {
    let whole = Bytes::from_owner(Watched(vec![0; count + 64], dropped.clone()));
    let offset = whole.as_ptr().align_offset(64);
    whole.slice(offset..offset + count)
}

fn f32s(count: usize) -> ArraySpec {
    ArraySpec::new(DType::F32, [count])
}

fn upload(values: &[f32]) -> safejax::Buffer {
    client().buffer_from_slice(&f32s(values.len()), bytemuck::cast_slice(values), first_device()).unwrap()
}

/// `x * x + 1` over eight floats, with `x` donated if the caller gives it away.
const SQUARE: &str = r"
module @square {
  func.func public @main(%x: tensor<8xf32> {tf.aliasing_output = 0 : i32}) -> tensor<8xf32> {
    %one = stablehlo.constant dense<1.0> : tensor<8xf32>
    %square = stablehlo.multiply %x, %x : tensor<8xf32>
    %sum = stablehlo.add %square, %one : tensor<8xf32>
    return %sum : tensor<8xf32>
  }
}
";

#[test]
fn host_memory_that_is_used_in_place_lives_as_long_as_the_buffer() {
    if is_skipped(Only::Cpu, "other devices copy host memory") {
        return;
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let data = aligned(4096, &dropped);
    let address = data.as_ptr();
    let buffer = client().buffer_from_host(&f32s(1024), data, first_device(), HostSemantics::Alias).unwrap();
    buffer.wait().unwrap();
    assert_eq!(buffer.external_reference().unwrap().as_ptr().cast_const(), address.cast());
    assert!(!dropped.load(Ordering::SeqCst), "freed while the buffer uses it");
    drop(buffer);
    // A thread of the plugin gives it back.
    let given_back = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        dropped.load(Ordering::SeqCst)
    });
    assert!(given_back, "kept after the buffer has gone");
}

#[test]
fn an_alias_is_never_written_to_even_if_it_is_donated() {
    let function = client().compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
    assert_eq!(function.signature().unwrap().donatable(), [0]);
    let data = aligned(32, &Arc::default());
    let buffer =
        client().buffer_from_host(&f32s(8), data.clone(), first_device(), HostSemantics::Alias).unwrap();
    let outputs = function.call(&[&Donate(buffer)]).unwrap();
    assert_eq!(outputs.single().unwrap().to_vec::<f32>().unwrap(), [1.0; 8]);
    assert_eq!(&data[..], [0; 32]);
}

#[test]
fn a_buffer_over_host_memory_is_donated_in_place() {
    if is_skipped(Only::Cpu, "other devices copy host memory") {
        return;
    }
    let function = client().compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
    let mut memory = HostMemory::allocate(32).unwrap();
    memory.copy_from_slice(bytemuck::cast_slice(&[2f32; 8]));
    let address = memory.as_ptr();
    let x = client().buffer_over(&f32s(8), memory, first_device()).unwrap();
    let is_in_place = |buffer: &safejax::Buffer| {
        buffer.wait().unwrap();
        buffer.external_reference().unwrap().as_ptr().cast_const() == address.cast()
    };
    assert!(is_in_place(&x));
    let lent = function.call(&[&x]).unwrap();
    assert!(!is_in_place(lent.single().unwrap().buffer().unwrap()));
    assert_eq!(x.to_vec::<f32>().unwrap(), [2.0; 8]);
    let outputs = function.call(&[&Donate(x)]).unwrap();
    let y = outputs.single().unwrap();
    assert!(is_in_place(y.buffer().unwrap()));
    assert_eq!(y.to_vec::<f32>().unwrap(), [5.0; 8]);
}

#[test]
fn a_donated_buffer_is_used_up_and_a_lent_one_is_not() {
    let function = client().compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
    let x = upload(&[2.0; 8]);
    let lent = function.call(&[&x]).unwrap();
    assert_eq!(lent.single().unwrap().to_vec::<f32>().unwrap(), [5.0; 8]);
    assert_eq!(x.to_vec::<f32>().unwrap(), [2.0; 8]);

    let outputs = function.call(&[&Donate(x.clone())]).unwrap();
    assert_eq!(outputs.single().unwrap().to_vec::<f32>().unwrap(), [5.0; 8]);
    assert!(x.is_deleted().unwrap());
    let error = x.to_vec::<f32>().unwrap_err().to_string();
    assert!(error.contains("was donated to an earlier call"), "{error}");
    let error = function.call(&[&x]).unwrap_err().to_string();
    assert!(
        error.contains("`square`") && error.contains("argument 0: the buffer") && error.contains("donated"),
        "{error}"
    );
}

#[test]
fn of_threads_that_donate_one_buffer_at_once_one_gets_it() {
    let function = client().compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
    for _ in 0..200 {
        let x = upload(&[2.0; 8]);
        x.wait().unwrap();
        let start = std::sync::Barrier::new(8);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let donate = || {
                start.wait();
                function.call(&[&Donate(x.clone())])
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(donate)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (done, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].as_ref().unwrap().single().unwrap().to_vec::<f32>().unwrap(), [5.0; 8]);
        for error in refused {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("was donated to a"), "{error}");
        }
        assert!(x.to_vec::<f32>().is_err());
    }
}

#[test]
fn outputs_feed_the_next_call_without_leaving_the_device() {
    let function = client().compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
    let mut x = safejax::Array::from(upload(&[0.5; 8]));
    let mut expected = 0.5f32;
    for _ in 0..5 {
        let outputs = function.call(&[&Donate(x)]).unwrap();
        x = outputs.into_arrays().remove(0);
        expected = expected * expected + 1.0;
    }
    assert_eq!(x.to_vec::<f32>().unwrap(), [expected; 8]);
}

#[test]
fn calls_from_several_threads_do_not_disturb_each_other() {
    let function = client().compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let function = function.clone();
            scope.spawn(move || {
                for round in 0..100 {
                    let value = (thread * 100 + round) as f32;
                    let x = upload(&[value; 8]);
                    let y = function.call(&[&x]).unwrap();
                    assert_eq!(y.single().unwrap().to_vec::<f32>().unwrap(), [value * value + 1.0; 8]);
                }
            });
        }
    });
}

#[test]
fn an_event_calls_back_once_and_survives_a_panic_in_the_callback() {
    let (sender, receiver) = mpsc::channel();
    let buffer = upload(&[1.0; 8]);
    buffer.ready().unwrap().on_ready(move |outcome| sender.send(outcome.is_ok()).unwrap()).unwrap();
    assert_eq!(receiver.recv_timeout(std::time::Duration::from_secs(10)), Ok(true));
    buffer.ready().unwrap().on_ready(|_| panic!("on purpose")).unwrap();
    buffer.wait().unwrap();
    let event = buffer.ready().unwrap();
    event.wait().unwrap();
    assert!(event.is_ready().unwrap());
}

#[test]
fn the_last_handle_may_be_dropped_by_a_callback() {
    let own = other_client();
    let placement = Placement::from(&own.device(0).unwrap());
    let buffer = own.buffer_from_slice(&f32s(2), &[0; 8], &placement).unwrap();
    let event = buffer.ready().unwrap();
    drop((own, placement));
    let (sender, receiver) = mpsc::channel();
    event
        .on_ready(move |_| {
            drop(buffer); // and the client with it
            sender.send(()).unwrap();
        })
        .unwrap();
    receiver.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
}

#[test]
fn raw_bytes_layouts_and_copies_agree_with_the_elements() {
    let values: Vec<f32> = (0..8u8).map(f32::from).collect();
    let buffer = upload(&values);
    assert_eq!(buffer.on_device_bytes().unwrap(), 32);
    assert_eq!(buffer.is_on_cpu().unwrap(), is_cpu());
    assert_eq!(buffer.minor_to_major().unwrap(), Some(vec![0]));
    let raw = buffer.start_raw_to_host(4, 8).unwrap().wait().unwrap();
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&raw), [1.0, 2.0]);
    assert!(buffer.start_raw_to_host(28, 8).is_err());
    let other = client().addressable_devices().pop().unwrap();
    let copy = buffer.copy_to(&other).unwrap();
    assert_eq!(copy.to_vec::<f32>().unwrap(), values);
    assert_eq!(copy.device().unwrap(), other);
    let mut small = [0u8; 4];
    assert!(buffer.read_into(&mut small).is_err());
    assert!(matches!(buffer.to_vec::<i32>(), Err(Error::DTypeMismatch { .. })));
}

#[test]
fn pieces_put_together_by_a_transfer_manager_make_whole_buffers() {
    let memory = client().device(0).unwrap().default_memory().unwrap();
    let manager = client().transfer_manager(&[f32s(4), f32s(2)], &memory).unwrap();
    assert_eq!(manager.buffer_bytes(0).unwrap(), 16);
    let (first, second) = (manager.take_buffer(0).unwrap(), manager.take_buffer(1).unwrap());
    let piece = |values: &[f32]| Bytes::copy_from_slice(bytemuck::cast_slice(values));
    manager.transfer(1, 0, piece(&[5.0, 6.0]), TransferPart::Last).unwrap().wait().unwrap();
    let early = manager.transfer(0, 0, piece(&[1.0, 2.0]), TransferPart::Part).unwrap();
    drop(manager.transfer(0, 8, piece(&[3.0, 4.0]), TransferPart::Last).unwrap()); // its bytes must stay until they are copied
    early.wait().unwrap();
    assert_eq!(first.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(second.to_vec::<f32>().unwrap(), [5.0, 6.0]);
    assert!(manager.transfer(0, 12, piece(&[1.0, 2.0]), TransferPart::Last).is_err());
    assert!(manager.take_buffer(2).is_err());
    // Plugins crash on each of these if they are let through.
    assert!(manager.take_buffer(0).unwrap_err().to_string().contains("was taken before"));
    assert!(
        manager
            .transfer(0, 0, piece(&[1.0]), TransferPart::Part)
            .unwrap_err()
            .to_string()
            .contains("completed or failed")
    );
    assert!(manager.fail_buffer(0, "too late").unwrap_err().to_string().contains("completed or failed"));
    let other = other_client();
    let foreign = other.device(0).unwrap().default_memory().unwrap();
    assert!(client().transfer_manager(&[f32s(4)], &foreign).is_err());
}

#[test]
fn a_transfer_that_cannot_be_completed_fails_its_buffer() {
    let memory = client().device(0).unwrap().default_memory().unwrap();
    let manager = client().transfer_manager(&[f32s(4)], &memory).unwrap();
    let buffer = manager.take_buffer(0).unwrap();
    manager.fail_buffer(0, "the file ended early").unwrap();
    let error = buffer.wait().unwrap_err().to_string();
    assert!(error.contains("the file ended early"), "{error}");
    assert!(manager.fail_buffer(0, "again").is_err());
    assert!(manager.transfer(0, 0, Bytes::from_static(&[0; 4]), TransferPart::Last).is_err());
}

#[test]
fn what_plugins_abort_over_is_refused_first() {
    let memory = client().device(0).unwrap().default_memory().unwrap();
    for shape in [vec![1usize << 62], vec![1 << 62, 1 << 62], vec![1 << 40, 0, 1 << 40]] {
        let spec = ArraySpec::new(DType::F32, shape);
        let error = client().uninitialized_buffer(&spec, first_device()).unwrap_err().to_string();
        assert!(error.contains("larger than any memory"), "{error}");
        assert!(client().transfer_manager(&[spec], &memory).is_err());
    }
    for (replicas, partitions) in [(0, 1), (1, 0), (1000, 1), (1 << 16, 1 << 16), (1 << 31, 1 << 33)] {
        assert!(client().default_device_assignment(replicas, partitions).is_err());
        let mut options = CompileOptions::default();
        (options.replicas, options.partitions) = (replicas, partitions);
        let error =
            client().compile_with(&Program::from_bytes(SQUARE).unwrap(), &options).unwrap_err().to_string();
        assert!(error.contains("this client has"), "{error}");
    }
    if is_skipped(Only::Devices(2), "assignments to two devices") {
        return;
    }
    assert_eq!(client().default_device_assignment(2, 1).unwrap().len(), 2);
    let mut options = CompileOptions::default();
    options.device_assignment = Some(vec![vec![-1]]);
    let error =
        client().compile_with(&Program::from_bytes(SQUARE).unwrap(), &options).unwrap_err().to_string();
    assert!(error.contains("a device -1, which is not there"), "{error}");
    options.replicas = 2;
    options.device_assignment = Some(vec![vec![0], vec![0]]);
    let error =
        client().compile_with(&Program::from_bytes(SQUARE).unwrap(), &options).unwrap_err().to_string();
    assert!(error.contains("device 0 twice"), "{error}");
}

#[test]
fn a_view_that_holds_the_last_handle_can_be_dropped_while_it_is_used() {
    let own = other_client();
    let device = own.device(0).unwrap();
    let function = own.compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
    let base = own.buffer_from_slice(&f32s(8), &[0; 32], &device).unwrap();
    let reference = base.external_reference().unwrap();
    let (sender, receiver) = mpsc::channel();
    // SAFETY: the reference keeps the memory of `base` in place until the view gives it back.
    #[allow(unsafe_code)]
    let view = unsafe {
        own.view_of_device_memory(&f32s(8), reference.as_ptr(), &device, move || {
            drop((base, reference));
            sender.send(()).unwrap();
        })
    }
    .unwrap();
    let outputs = function.call(&[&view]).unwrap();
    drop((view, function, device, own, outputs));
    receiver.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
}

#[test]
fn a_view_of_foreign_memory_is_given_back() {
    if is_skipped(Only::Cpu, "the memory is the host's") {
        return;
    }
    let device = client().device(0).unwrap();
    let layout = std::alloc::Layout::from_size_align(64, 64).unwrap();
    // SAFETY: the layout is not empty; the memory is freed once, when the buffer gives it back.
    #[allow(unsafe_code)]
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    let (sender, receiver) = mpsc::channel();
    let address = memory as usize;
    // SAFETY: the memory holds 16 floats, lives until the callback, and nobody else touches it.
    #[allow(unsafe_code)]
    let view = unsafe {
        client()
            .view_of_device_memory(&f32s(16), memory.cast(), &device, move || sender.send(address).unwrap())
    }
    .unwrap();
    assert_eq!(view.to_vec::<f32>().unwrap(), [0.0; 16]);
    drop(view);
    assert_eq!(receiver.recv_timeout(std::time::Duration::from_secs(10)), Ok(address));
    // SAFETY: allocated above with this layout.
    #[allow(unsafe_code)]
    unsafe {
        std::alloc::dealloc(memory, layout);
    }
}

#[test]
fn an_uninitialized_buffer_has_its_type_and_size() {
    let buffer = client().uninitialized_buffer(&f32s(16), first_device()).unwrap();
    assert_eq!(buffer.on_device_bytes().unwrap(), 64);
    assert_eq!(buffer.spec(), &f32s(16));
    buffer.delete().unwrap();
    assert!(buffer.wait().is_err());
}

#[test]
fn what_the_cpu_does_not_have_is_an_error_that_says_so() {
    if is_skipped(Only::Cpu, "accelerators have both") {
        return;
    }
    let error = client().device(0).unwrap().memory_stats().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unimplemented), "{error}");
    let error = DmaRegion::new(client(), HostMemory::allocate(4096).unwrap()).err().unwrap();
    assert_eq!(error.code(), Some(ErrorCode::Unimplemented), "{error}");
}

#[test]
fn a_program_for_two_devices_runs_on_two() {
    if is_skipped(Only::Devices(2), "it takes two devices") {
        return;
    }
    let code = br"
module @pair attributes {mhlo.num_replicas = 2 : i32} {
  func.func public @main(%x: tensor<2xf32>) -> tensor<2xf32> {
    %sum = stablehlo.add %x, %x : tensor<2xf32>
    return %sum : tensor<2xf32>
  }
}
";
    let mut options = CompileOptions::default();
    options.replicas = 2;
    let executable = client().compile_program(code, ProgramFormat::Mlir, &options).unwrap();
    assert_eq!(executable.devices().len(), 2);
    assert_eq!(executable.compiled().replicas_and_partitions().unwrap(), (2, 1));
    let inputs: Vec<safejax::Buffer> = executable
        .devices()
        .iter()
        .enumerate()
        .map(|(index, device)| {
            let values = [index as f32, 10.0];
            client().buffer_from_slice(&f32s(2), bytemuck::cast_slice(&values), device).unwrap()
        })
        .collect();
    let execution =
        executable.execute(&[vec![Input::Borrow(&inputs[0])], vec![Input::Borrow(&inputs[1])]]).unwrap();
    execution.done.iter().for_each(|event| event.wait().unwrap());
    assert_eq!(execution.outputs[1][0].to_vec::<f32>().unwrap(), [2.0, 20.0]);
    let error = executable.execute(&[vec![Input::Borrow(&inputs[0])]]).unwrap_err().to_string();
    assert!(error.contains("runs on 2 devices"), "{error}");
}

#[test]
fn an_executable_says_what_it_is_and_survives_serialisation() {
    let function = client().compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
    let executable = function.executable().unwrap();
    assert_eq!(executable.name(), "square");
    assert_eq!(executable.outputs(), [f32s(8).into()]);
    let stats = executable.compiled().memory_stats().unwrap();
    assert_eq!((stats.argument_bytes, stats.output_bytes), (32, 32));
    assert_eq!(executable.compiled().output_memory_kinds().unwrap(), ["device"]);
    let bytes = executable.compiled().serialize().unwrap();
    let once = client().load_serialized(&bytes).unwrap();
    let again = client().load_serialized(&once.compiled().serialize().unwrap()).unwrap();
    let x = upload(&[3.0; 8]);
    let outputs = again.execute(&[vec![Input::Borrow(&x)]]).unwrap().outputs;
    assert_eq!(outputs[0][0].to_vec::<f32>().unwrap(), [10.0; 8]);
    assert!(client().load_serialized(b"nonsense").is_err());
}

#[test]
fn create_options_are_checked_and_unknown_ones_refused() {
    if is_skipped(Only::Cpu, "the options are the CPU's") {
        return;
    }
    let plugin = client().plugin();
    assert_eq!(plugin.client().device_count(2).build().unwrap().devices().len(), 2);
    let error = plugin.client().device_count(0).build().unwrap_err().to_string();
    assert!(error.contains("`cpu_device_count` is a whole number from 1"), "{error}");
    // A plugin aborts on this one if it is let through.
    let error = plugin.client().option("cpu_device_count", "two").build().unwrap_err().to_string();
    assert!(error.contains("not `two`"), "{error}");
    let error = plugin.client().option("no_such_option", true).build().unwrap_err().to_string();
    assert!(error.contains("Unexpected option name"), "{error}");
    assert!(plugin.attribute("stablehlo_current_version").is_some());
    assert_eq!(plugin.attribute("nothing"), None);
    let list = NamedValue::Int64List(vec![1, 2]);
    assert!(plugin.client().option("cpu_device_count", list).build().is_err());
}

#[test]
fn a_device_that_is_not_there_and_one_of_another_client_are_refused() {
    let error = client().device(99).unwrap_err().to_string();
    let start = format!("there is no device {}:99; this client has ", client().platform_name());
    assert!(error.starts_with(&start), "{error}");
    let other = other_client();
    let foreign = Placement::from(&other.device(0).unwrap());
    let error = client().buffer_from_slice(&f32s(1), &[0; 4], &foreign).unwrap_err().to_string();
    assert!(error.contains("belongs to another client"), "{error}");
    let theirs = other.buffer_from_slice(&f32s(8), &[0; 32], &foreign).unwrap();
    let function = client().compile(&Program::from_bytes(SQUARE).unwrap()).unwrap();
    let error = function.call(&[&theirs]).unwrap_err().to_string();
    assert!(error.contains("another client"), "{error}");
}

#[test]
fn a_plugin_is_loaded_once() {
    let path = client().plugin().path();
    let again = Plugin::open(path).unwrap();
    assert_eq!(again.path(), path);
    assert_eq!(again.api_version().major, 0);
}

#[test]
fn bytes_of_the_wrong_length_never_reach_the_plugin() {
    let error = client().buffer_from_slice(&f32s(2), &[0; 4], first_device()).unwrap_err().to_string();
    assert_eq!(error, "float32[2] takes 8 bytes, but 4 were given");
    let huge = ArraySpec::new(DType::F32, [usize::MAX, 2]);
    assert!(client().buffer_from_slice(&huge, &[], first_device()).is_err());
    assert!(
        client().uninitialized_buffer(&ArraySpec::new(DType::F32, [usize::MAX]), first_device()).is_err()
    );
}

#[test]
fn external_references_are_taken_and_given_back_by_several_threads() {
    let buffer = client().buffer_from_slice(&f32s(64), &[0; 256], first_device()).unwrap();
    buffer.wait().unwrap();
    let pointer = buffer.external_reference().unwrap().as_ptr().addr();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5000 {
                    assert_eq!(buffer.external_reference().unwrap().as_ptr().addr(), pointer);
                }
            });
        }
    });
}

#[test]
fn events_and_copies_are_awaited_on_any_runtime() {
    let x = client().put(&HostArray::from_slice(&[3], &[1.0f32, 2.0, 3.0]).unwrap()).unwrap();
    let bytes = common::block_on(async {
        x.ready()?.await?;
        x.start_to_host()?.await
    });
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes.unwrap()), [1.0, 2.0, 3.0]);
    // What nobody awaits in the end does no harm.
    drop(x.start_to_host().unwrap().into_future());
    drop(x.ready().unwrap().into_future());
}

#[test]
fn a_scalar_is_one_item_and_shared_trees_are_arguments() {
    let scalar = client().put(&HostArray::from_slice(&[], &[4.5f32]).unwrap()).unwrap();
    assert_eq!(scalar.item::<f32>().unwrap(), 4.5);
    assert!(scalar.item::<f64>().is_err());
    let two = HostArray::from_slice(&[2], &[1i32, 2]).unwrap();
    assert!(two.item::<i32>().unwrap_err().to_string().contains("2 elements"));
    assert!(client().put(&two).unwrap().item::<i32>().is_err());
    let program = Program::open(common::data("affine.mlir")).unwrap();
    let affine = client().compile(&program).unwrap();
    let arrays = [
        HostArray::from_slice(&[3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap(),
        HostArray::from_slice(&[4, 3], &[1.0f32; 12]).unwrap(),
        HostArray::from_slice(&[2], &[0.0f32; 2]).unwrap(),
    ];
    let def = safejax::TreeDef::List(vec![safejax::TreeDef::LEAF; 3]);
    let tree = std::sync::Arc::new(safejax::Tree::unflatten(def, arrays).unwrap());
    let outputs = affine.call(&[&tree]).unwrap();
    assert_eq!(outputs.to_params().arrays()[1].to_vec::<f32>().unwrap()[..2], [9.0, 12.0]);
}
