//! Weights that are copied between a device's memory and the host's.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use roundhouse_models::{
    Cancel, DeviceMemory, Digests, DtypeSetting, Error, LoadSettings, LoadedRunner, ModelPlan,
    Sharing, TensorPool, Weights, inspect, load, load_shared, promote, read_local,
};
use roundhouse_types::{Bytes, DeviceId, SharedPart};

use crate::sharing::{LAYERS, Lies, answer, checkpoint};
use crate::support::settings;

const FORMATS: [DtypeSetting; 3] = [DtypeSetting::Auto, DtypeSetting::F32, DtypeSetting::F16];

fn plan(folder: &Path, dtype: DtypeSetting) -> ModelPlan {
    let settings = LoadSettings { dtype, ..settings() };
    inspect(&read_local(folder).unwrap(), &settings).unwrap()
}

/// A device whose copies pass its link in no time.
fn device(number: u16) -> DeviceMemory {
    DeviceMemory::new(DeviceId::Simulated(number), NonZeroU64::new(1 << 50))
}

fn sharing(pool: &Arc<TensorPool>) -> Sharing {
    Sharing { pool: Arc::clone(pool), scope: String::new(), known: Digests::default() }
}

fn demoted(loaded: &LoadedRunner, from: &DeviceMemory, host: Option<&TensorPool>) -> Weights {
    let weights = loaded.weights.as_ref().expect("a device of its own keeps a record");
    weights.to_host(from, host, &Cancel::new()).unwrap()
}

fn sum(parts: &[SharedPart]) -> Bytes {
    parts.iter().map(|part| part.bytes).sum()
}

#[test]
fn a_model_from_the_hosts_memory_answers_to_the_bit_as_one_from_its_files() {
    for is_decoder in [true, false] {
        for dtype in FORMATS {
            let folder = checkpoint(is_decoder, Lies::Bf16, 1, 0);
            let plan = plan(folder.path(), dtype);
            let device = device(0);
            let mut loaded = load(folder.path(), &plan, device.clone(), &Cancel::new()).unwrap();
            let want = answer(&mut loaded, is_decoder);
            let copy = demoted(&loaded, &device, None);
            let footprint = loaded.footprint;
            drop((loaded, folder));

            assert_eq!(copy.bytes(), footprint.weights);
            let mut promoted = promote(&plan, &copy, &device, None, &Cancel::new()).unwrap();
            assert_eq!(promoted.footprint, footprint);
            assert_eq!(answer(&mut promoted, is_decoder), want);
            // The copy stays, and does for another device.
            let mut elsewhere = promote(&plan, &copy, &self::device(1), None, &Cancel::new());
            assert_eq!(answer(elsewhere.as_mut().unwrap(), is_decoder), want);
        }
    }
}

#[test]
fn fine_tunes_hold_their_base_once_in_the_hosts_memory_and_once_on_each_device() {
    for dtype in FORMATS {
        let (on_device, in_host, device) = (Arc::default(), TensorPool::new(), device(0));
        let folders = [1, 2].map(|model| checkpoint(true, Lies::F32, model, LAYERS - 1));
        let plan = plan(folders[0].path(), dtype);
        let mut loaded = folders.each_ref().map(|folder| {
            let sharing = sharing(&on_device);
            load_shared(folder.path(), &plan, device.clone(), &Cancel::new(), &sharing).unwrap()
        });
        let want = loaded.each_mut().map(|loaded| answer(loaded, true));
        let shared = loaded.each_ref().map(|loaded| loaded.shared.clone());
        let together = on_device.bytes();
        assert!(together < sum(&shared[0]) + sum(&shared[1]));

        let copies = loaded.each_ref().map(|loaded| demoted(loaded, &device, Some(&in_host)));
        assert_eq!(in_host.bytes(), together);
        for (copy, parts) in copies.iter().zip(&shared) {
            let mut parts = parts.clone();
            parts.sort_unstable_by_key(|part| part.content);
            assert_eq!(copy.shared(), parts);
        }
        drop(loaded);
        assert_eq!(on_device.bytes(), Bytes::ZERO);

        let mut promoted = copies
            .each_ref()
            .map(|copy| promote(&plan, copy, &device, Some(&on_device), &Cancel::new()).unwrap());
        assert_eq!(on_device.bytes(), together);
        assert_eq!(promoted[0].found, Bytes::ZERO);
        assert_eq!(together + promoted[1].found, sum(&shared[0]) + sum(&shared[1]));
        assert_eq!(promoted.each_mut().map(|promoted| answer(promoted, true)), want);
        drop(copies);
        assert_eq!(in_host.bytes(), Bytes::ZERO);
        assert_eq!(on_device.bytes(), together, "a device's buffers are not the host's");
        drop(promoted);
        assert_eq!(on_device.bytes(), Bytes::ZERO);
    }
}

#[test]
fn a_copy_of_another_model_a_cancelled_copy_and_a_device_that_is_not_there_are_refused() {
    let folders = [true, false].map(|is_decoder| checkpoint(is_decoder, Lies::F32, 1, 0));
    let plans = folders.each_ref().map(|folder| plan(folder.path(), DtypeSetting::F32));
    let device = device(0);
    let loaded = load(folders[0].path(), &plans[0], device.clone(), &Cancel::new()).unwrap();
    let copy = demoted(&loaded, &device, None);
    let (fresh, cancelled) = (Cancel::new(), Cancel::new());
    cancelled.cancel();
    let error = promote(&plans[1], &copy, &device, None, &fresh).unwrap_err();
    assert!(matches!(error, Error::MissingTensor { .. }), "{error}");
    let error = promote(&plans[0], &copy, &device, None, &cancelled).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    let weights = loaded.weights.as_ref().unwrap();
    assert!(matches!(weights.to_host(&device, None, &cancelled), Err(Error::Cancelled)));
    let missing = DeviceMemory::from(DeviceId::Cuda(0));
    let error = promote(&plans[0], &copy, &missing, None, &fresh).unwrap_err();
    assert!(matches!(error, Error::NoDevice { .. }), "{error}");
    // Where the device's memory is the host's there is nothing to copy.
    let at_home = load(folders[0].path(), &plans[0], DeviceId::Cpu, &fresh).unwrap();
    assert!(at_home.weights.is_none());
}
