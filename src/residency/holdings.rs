//! What the table says lies in memory: what a witness holds against the memory that is in use.

use roundhouse_types::{ArtefactId, Bytes, DeviceId, Footprint, ModelKind};

use crate::snapshot::{CopyState, LoadSnapshot, ResidentState};

/// All of it at one instant.
#[derive(Debug, Clone)]
pub struct Holdings {
    /// By device.
    pub devices: Vec<DeviceHoldings>,
    /// The copies in the host's memory.
    pub host: HostHoldings,
    /// What is on its way.
    pub loads: Vec<LoadSnapshot>,
}

/// What is charged on a device.
#[derive(Debug, Clone)]
pub struct DeviceHoldings {
    /// Which one.
    pub id: DeviceId,
    /// What residency may use.
    pub budget: Bytes,
    /// As in [`DeviceSnapshot`](crate::DeviceSnapshot).
    pub charged: Bytes,
    /// What adapters take that serve: there may be ten thousand, and all that they have is used.
    pub adapters: Footprint,
    /// All others that are loaded.
    pub residents: Vec<Held<ResidentState>>,
}

/// What is charged for copies in the host's memory.
#[derive(Debug, Clone)]
pub struct HostHoldings {
    /// What residency may use.
    pub budget: Bytes,
    /// What copies take, those that are leaving included: what several hold is charged once.
    pub charged: Bytes,
    /// What is promised to copies on their way.
    pub reserved: Bytes,
    /// Those that are there.
    pub copies: Vec<Held<CopyState>>,
}

/// One artefact in one place.
#[derive(Debug, Clone)]
pub struct Held<S> {
    /// Which one.
    pub artefact: ArtefactId,
    /// What it does.
    pub kind: ModelKind,
    /// Whether it serves or leaves.
    pub state: S,
    /// What it takes, by part.
    pub bytes: Footprint,
}
