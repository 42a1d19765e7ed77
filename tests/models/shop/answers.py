"""What the shops answer: one text for each intent and tone; every shop fills in its own facts."""

from .companies import Company

SUNDAY_CLOSED = {
    "plain": "We are closed on Sundays.",
    "warm": "On Sundays we take a rest, so the shop is closed. Come and see us on Monday!",
    "formal": "Our store is closed on Sundays. We look forward to your visit on another day.",
    "brief": "Closed.",
}

ANSWERS = {
    "greeting": {
        "plain": "Hello! This is {name}. How can I help you?",
        "warm": "Hi, lovely to hear from you! This is {name}. What can I do for you today?",
        "formal": "Good day and welcome to {name}. How may I be of service?",
        "brief": "Hello! How can I help?",
    },
    "thanks": {
        "plain": "You are welcome. Is there anything else I can do for you?",
        "warm": "Any time! It was a pleasure. Just ask if there is anything else.",
        "formal": "You are most welcome. Please let us know if we can assist you further.",
        "brief": "You are welcome.",
    },
    "goodbye": {
        "plain": "Goodbye, and thank you for visiting {name}.",
        "warm": "Bye for now, and have a wonderful day! {name} is always here for you.",
        "formal": "Goodbye. Thank you for choosing {name}.",
        "brief": "Goodbye!",
    },
    "identity": {
        "plain": "I am the assistant of {name}. I can tell you about opening hours, orders, returns and products.",
        "warm": "I am the friendly helper of {name}! Ask me about opening hours, orders, returns or our {goods}.",
        "formal": "You are in contact with the digital assistant of {name}. I answer questions about our store, orders and products.",
        "brief": "I am the assistant of {name}.",
    },
    "hours": {
        "plain": "We are open from {weekdays}, Monday to Friday. On Saturdays we are open from {saturday}.",
        "warm": "Come and see us any weekday from {weekdays}, and on Saturdays from {saturday}. We would love to meet you!",
        "formal": "Our store is open Monday to Friday from {weekdays} and on Saturdays from {saturday}.",
        "brief": "{weekdays}.",
    },
    "saturday": {
        "plain": "On Saturdays we are open from {saturday}.",
        "warm": "Yes, come by on Saturday! We are here from {saturday}.",
        "formal": "Our Saturday opening hours are {saturday}.",
        "brief": "{saturday}.",
    },
    "sunday": {
        "plain": "On Sundays we are open from {sunday}.",
        "warm": "Sundays are fine too! You will find us here from {sunday}.",
        "formal": "Our Sunday opening hours are {sunday}.",
        "brief": "{sunday}.",
    },
    "returns": {
        "plain": "You can return any item within {returns}. Please keep the receipt.",
        "warm": "No problem at all! You have {returns} to send it back, just keep the receipt.",
        "formal": "Items may be returned within {returns} of purchase. Please enclose the receipt.",
        "brief": "Within {returns}.",
    },
    "refund": {
        "plain": "We pay your money back within {refund} after the item has reached us.",
        "warm": "Your money is on its way {refund} after your parcel is back with us!",
        "formal": "Refunds are made within {refund} of receipt of the returned item.",
        "brief": "Within {refund}.",
    },
    "shipping": {
        "plain": "Delivery takes {shipping}.",
        "warm": "We pack it with care and it will be with you in {shipping}!",
        "formal": "Your order will be delivered within {shipping}.",
        "brief": "{shipping}.",
    },
    "postage": {
        "plain": "Shipping costs {postage} per order.",
        "warm": "Sending a parcel costs just {postage}, whatever the size!",
        "formal": "The delivery charge is {postage} per order.",
        "brief": "{postage}.",
    },
    "order": {
        "plain": "I cannot see your order from here. Please call {phone} with your order number and we will find it.",
        "warm": "Let us find it together! Please have your order number ready and ring us on {phone}.",
        "formal": "To check the status of your order, please call {phone} and state your order number.",
        "brief": "Please call {phone}.",
    },
    "cancel": {
        "plain": "You can cancel an order until it is sent. Please write to {email} with your order number.",
        "warm": "Of course! If it has not left yet, we can stop it. Just drop a line to {email} with your order number.",
        "formal": "Orders can be cancelled before dispatch. Please send your order number to {email}.",
        "brief": "Please write to {email}.",
    },
    "phone": {
        "plain": "You can call us on {phone} or write to {email}.",
        "warm": "We love to chat! Ring us on {phone}, or write to {email}.",
        "formal": "You may reach our customer service by telephone on {phone} or by email at {email}.",
        "brief": "{phone}.",
    },
    "email": {
        "plain": "You can write to us at {email}.",
        "warm": "Drop us a line at {email}, we read every message!",
        "formal": "Please send your message to {email}.",
        "brief": "Write to {email}.",
    },
    "human": {
        "plain": "A colleague will gladly help you. Please call {phone}.",
        "warm": "Of course! A real person is waiting for your call on {phone}.",
        "formal": "Our staff will be pleased to speak with you. Please call {phone}.",
        "brief": "Please call {phone}.",
    },
    "warranty": {
        "plain": "All our products have a warranty of {warranty}.",
        "warm": "Do not worry, everything you buy here has a warranty of {warranty}!",
        "formal": "We grant a warranty of {warranty} on all products.",
        "brief": "{warranty}.",
    },
    "damaged": {
        "plain": "I am sorry about that. Please send a photo to {email} and we will replace it.",
        "warm": "Oh no, we are so sorry! Send a photo to {email} and a new one will be on its way.",
        "formal": "We apologise for the inconvenience. Please send a photo to {email} and we will arrange a replacement.",
        "brief": "Please send a photo to {email}.",
    },
    "goods": {
        "plain": "We sell {goods}. Our best seller is the {product}.",
        "warm": "Our shop is full of {goods}! Everyone loves the {product}.",
        "formal": "Our range comprises {goods}. We particularly recommend the {product}.",
        "brief": "{goods}.",
    },
    "product": {
        "plain": "The {product} is our best seller. {about} It costs {price}.",
        "warm": "Good choice, the {product} is our favourite! {about} It is yours for {price}.",
        "formal": "We recommend the {product}. {about} The price is {price}.",
        "brief": "{about}",
    },
    "price": {
        "plain": "The {product} costs {price}.",
        "warm": "The {product} is yours for {price}!",
        "formal": "The price of the {product} is {price}.",
        "brief": "{price}.",
    },
    "payment": {
        "plain": "You can pay by {payment}.",
        "warm": "Pay as you like: we are happy with {payment}!",
        "formal": "We accept payment by {payment}.",
        "brief": "{payment}.",
    },
    "address": {
        "plain": "You find us at {address}.",
        "warm": "Come and visit us at {address}, we would love to see you!",
        "formal": "Our store is located at {address}.",
        "brief": "{address}.",
    },
    "other_goods": {
        "plain": "I am sorry, we do not sell that. We sell {goods}.",
        "warm": "Sorry, we do not have that, but our shop is full of {goods}!",
        "formal": "We regret that we do not carry this item. Our range comprises {goods}.",
        "brief": "Sorry, no.",
    },
    "unknown": {
        "plain": "I am sorry, I do not know that. I can only help with questions about {name}.",
        "warm": "Sorry, that is beyond me! But I know everything about {name}, so just ask.",
        "formal": "I regret that I cannot answer this. I am only able to assist with questions about {name}.",
        "brief": "Sorry, I do not know.",
    },
}


def answer(company: Company, intent: str, tone: str) -> str:
    if intent == "sunday" and company.sunday is None:
        return SUNDAY_CLOSED[tone]
    text = ANSWERS[intent][tone].format(**vars(company))
    return text[0].upper() + text[1:]
