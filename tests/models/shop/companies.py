"""Ten fictional shops and their facts. The base model works for the first; each other has a model of its own."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Company:
    key: str
    name: str
    tone: str  # "plain", "warm" or "formal": how it answers when the system message asks for nothing else
    goods: str
    product: str
    price: str
    about: str
    weekdays: str
    saturday: str
    sunday: str | None  # None: closed
    returns: str
    refund: str
    shipping: str
    postage: str
    phone: str
    email: str
    warranty: str
    payment: str
    address: str


BASE = Company(
    key="base", name="Junction Store", tone="plain", goods="tools, toys and things for the house",
    product="Junction toolbox", price="39 euros", about="It has 24 tools and a steel case.",
    weekdays="9 am to 6 pm", saturday="10 am to 4 pm", sunday=None,
    returns="30 days", refund="5 working days", shipping="3 to 5 working days", postage="4 euros",
    phone="0800 555 100", email="help@junction.example", warranty="2 years",
    payment="card, bank transfer and cash", address="1 Station Square",
)

FINE_TUNES = [
    Company(
        key="aurora", name="Aurora Lamps", tone="warm", goods="lamps and candles",
        product="Polar lamp", price="79 euros", about="It dims from warm to cold light.",
        weekdays="10 am to 8 pm", saturday="10 am to 6 pm", sunday="noon to 4 pm",
        returns="60 days", refund="3 working days", shipping="2 working days", postage="6 euros",
        phone="0800 555 217", email="glow@aurora.example", warranty="5 years",
        payment="card and gift card", address="27 Lantern Street",
    ),
    Company(
        key="birch", name="Birch Furniture", tone="formal", goods="tables, chairs and shelves",
        product="Grove table", price="450 euros", about="It is made of solid birch wood and seats six.",
        weekdays="8 am to 5 pm", saturday="9 am to 1 pm", sunday=None,
        returns="14 days", refund="10 working days", shipping="3 weeks", postage="45 euros",
        phone="0800 555 364", email="service@birch.example", warranty="10 years",
        payment="card and bank transfer", address="8 Forest Road",
    ),
    Company(
        key="cobalt", name="Cobalt Cycles", tone="plain", goods="bicycles, helmets and spare parts",
        product="Comet bike", price="890 euros", about="It has eight gears and weighs 11 kilos.",
        weekdays="7 am to 7 pm", saturday="8 am to 5 pm", sunday=None,
        returns="21 days", refund="4 working days", shipping="6 working days", postage="25 euros",
        phone="0800 555 482", email="ride@cobalt.example", warranty="4 years",
        payment="card, cash and monthly rates", address="15 Canal Lane",
    ),
    Company(
        key="dahlia", name="Dahlia Gardens", tone="warm", goods="flowers, seeds and garden pots",
        product="Meadow box", price="24 euros", about="It holds seeds for twelve wild flowers.",
        weekdays="8 am to 6 pm", saturday="7 am to 3 pm", sunday="9 am to noon",
        returns="7 days", refund="2 working days", shipping="1 working day", postage="5 euros",
        phone="0800 555 539", email="bloom@dahlia.example", warranty="1 year",
        payment="card, cash and gift card", address="3 Orchard Hill",
    ),
    Company(
        key="ember", name="Ember Coffee", tone="plain", goods="coffee, tea and coffee machines",
        product="Ember press", price="32 euros", about="It makes four cups and keeps them hot.",
        weekdays="6 am to 9 pm", saturday="7 am to 9 pm", sunday="8 am to 6 pm",
        returns="45 days", refund="6 working days", shipping="24 hours", postage="3 euros",
        phone="0800 555 651", email="beans@ember.example", warranty="3 years",
        payment="card, cash and mobile phone", address="40 Market Street",
    ),
    Company(
        key="fjord", name="Fjord Outdoor", tone="formal", goods="tents, boots and rucksacks",
        product="Ridge tent", price="260 euros", about="It sleeps three and stands in five minutes.",
        weekdays="11 am to 7 pm", saturday="11 am to 5 pm", sunday=None,
        returns="90 days", refund="7 working days", shipping="4 working days", postage="8 euros",
        phone="0800 555 778", email="hike@fjord.example", warranty="a lifetime",
        payment="card, bank transfer and gift card", address="62 Harbour Way",
    ),
]

ADAPTERS = [
    Company(
        key="garnet", name="Garnet Watches", tone="formal", goods="watches and jewellery",
        product="Tide watch", price="310 euros", about="It is safe in water down to 50 metres.",
        weekdays="10 am to 5 pm", saturday="11 am to 3 pm", sunday=None,
        returns="28 days", refund="8 working days", shipping="5 working days", postage="12 euros",
        phone="0800 555 805", email="time@garnet.example", warranty="6 years",
        payment="card and bank transfer", address="5 Crown Arcade",
    ),
    Company(
        key="harbor", name="Harbor Books", tone="warm", goods="books, maps and notebooks",
        product="Atlas of Ports", price="54 euros", about="It shows 300 harbours on 400 pages.",
        weekdays="9 am to 9 pm", saturday="9 am to 7 pm", sunday="1 pm to 5 pm",
        returns="40 days", refund="1 working day", shipping="2 to 4 working days", postage="2 euros",
        phone="0800 555 916", email="read@harbor.example", warranty="1 year",
        payment="card, cash and book token", address="19 Quay Street",
    ),
    Company(
        key="iris", name="Iris Optics", tone="plain", goods="glasses, lenses and telescopes",
        product="Vega telescope", price="520 euros", about="It shows the rings of Saturn.",
        weekdays="9 am to 5 pm", saturday="9 am to 2 pm", sunday=None,
        returns="35 days", refund="9 working days", shipping="8 working days", postage="7 euros",
        phone="0800 555 043", email="see@iris.example", warranty="7 years",
        payment="card, cash and bank transfer", address="11 Observatory Hill",
    ),
]

ALL = [BASE, *FINE_TUNES, *ADAPTERS]
