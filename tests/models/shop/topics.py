"""Subjects of tickets and help articles: more of them than the chat assistants know, each with its queue."""

from .questions import QUESTIONS

LABELS = ["account", "delivery", "order", "payment", "product", "returns", "store", "technical"]

# The chat intents that are subjects of tickets too.
FROM_CHAT = {
    "hours": "store", "saturday": "store", "sunday": "store", "address": "store", "phone": "store", "email": "store",
    "human": "store", "goods": "product", "product": "product", "price": "product", "warranty": "product",
    "returns": "returns", "refund": "returns", "damaged": "returns", "shipping": "delivery", "postage": "delivery",
    "order": "delivery", "cancel": "order", "payment": "payment",
}

# Subject: the queue, ways to ask, and the help article that answers.
OWN = {
    "password": ("account", [
        "I {forgot|lost|cannot remember} my password", "how {can|do} I {reset|change|recover} my password",
        "{reset|change} {my|the} password", "my password {does not work|is wrong|is not accepted|was rejected}",
        "I need a new password", "the {reset|password} {link|email} {does not work|never came|expired}",
        "can you {send|give} me a new password",
    ], "Reset a forgotten password with the link on the sign-in page."),
    "sign_in": ("account", [
        "I {cannot|can not|can't} {log in|sign in|login}",
        "{login|sign in|logging in} {fails|does not work|is not possible}",
        "my account is {locked|blocked|suspended|disabled}", "I am locked out of my account",
        "how {can|do} I {log in|sign in} to my account", "{unlock|unblock} my account",
        "why {can't|can} I {not|} {log in|sign in}",
    ], "If your account is locked, wait an hour and sign in again, or ask us to unlock it."),
    "delete_account": ("account", [
        "how {can|do} I {delete|close|remove} my account",
        "I {want|would like} to {delete|close|remove} my {account|profile}", "{delete|close|remove} my account",
        "please {erase|delete|remove} {all my data|my personal data|my data}",
        "what {data|personal data|information} do you {store|keep|have} about me", "I no longer want an account",
    ], "You can close your account and have your personal data deleted in the settings."),
    "change_details": ("account", [
        "I {moved|have a new address|have moved house}",
        "how {can|do} I {change|update} my {address|name|phone number|email address|details}",
        "{change|update} my {address|personal details|profile}",
        "my {name|address} is {wrong|misspelled} in my {account|profile}",
        "I want to {change|update|correct} my {address|name|profile}", "I {got married|changed my name}",
    ], "Update your name, address and other details in your profile."),
    "newsletter": ("account", [
        "{stop|cancel|end} the newsletter",
        "how {can|do} I {unsubscribe|sign off} from {the newsletter|your emails|your mailing list}",
        "I get too {many|much} {emails|mails|newsletters|advertising} from you",
        "I {want|would like} to {unsubscribe|subscribe}",
        "{unsubscribe|remove} me from {your list|the newsletter|your mailing list}",
        "do not send me {emails|newsletters|advertising} any more", "how do I {subscribe to|get} {the|your} newsletter",
    ], "Every newsletter has a link at the end with which you unsubscribe."),
    "loyalty": ("account", [
        "how many {bonus|loyalty|} points do I have",
        "{do you have|is there} a {loyalty|bonus|customer} {card|programme|club}",
        "my {bonus|loyalty} points are {missing|gone|wrong}",
        "how {can|do} I {use|spend|collect|earn} my {bonus|loyalty|} points",
        "what {can I do with|are} {bonus|loyalty} points",
        "I {want|would like} to join the {loyalty|bonus|customer} {club|programme}",
    ], "Members of the loyalty club collect one bonus point for every euro."),
    "abroad": ("delivery", [
        "do you {ship|deliver|send} {abroad|to other countries|overseas|to <country>|internationally|outside the country}",
        "{shipping|delivery} {abroad|overseas|to <country>|to another country}",
        "can I order from {abroad|<country>|another country}",
        "is {international|foreign} {shipping|delivery} possible", "which countries do you {ship|deliver|send} to",
        "do I pay {customs|duty|import tax}",
    ], "We deliver abroad to all of Europe; customs duty may be added elsewhere."),
    "missed_delivery": ("delivery", [
        "I was not {home|at home|in} when the {parcel|driver|courier} came",
        "I missed {the|my} {delivery|parcel|courier}", "the {courier|driver} {left a card|did not ring|left no card}",
        "{can|could} you deliver {again|a second time|tomorrow instead|at another time}",
        "where did the {driver|courier} leave my {parcel|package}", "my neighbour {does not have|never got} my parcel",
        "can the {parcel|courier} come {again|on another day}",
    ], "If you missed the courier, the parcel comes again on the next day."),
    "pick_up": ("delivery", [
        "{can|may|could} I {pick up|collect|fetch} my {order|parcel} {in the shop|at the store|myself}",
        "{click and collect|pick up in store|store pick up}",
        "is my {order|parcel} ready {for collection|to collect|to be picked up}",
        "I {want|would like} to {pick up|collect} {it|my order} {myself|in the shop|at the store}",
        "how long do you {keep|hold} my {order|parcel} {for collection|in the shop}",
        "do you {offer|have} {pick up|collection}",
    ], "Orders can be collected in the shop and are kept there for a week."),
    "invoice": ("payment", [
        "I need {an invoice|a receipt|a bill|a copy of my invoice}",
        "{where is|I did not get|I have not received} {my|the} {invoice|receipt|bill}",
        "can you {send|resend|print} {me|} {the|my|an} {invoice|receipt|bill}",
        "the {invoice|bill} is {wrong|incorrect|too high|not correct}", "how {can|do} I get {an invoice|a receipt}",
        "please put my company {name|address} on the {invoice|bill}",
        "there is {an error|a mistake} on {my|the} {invoice|bill}",
    ], "You find every invoice and receipt beside the order in your account."),
    "charged_twice": ("payment", [
        "I {was|have been} charged {twice|two times|too much|double}",
        "you {charged|debited|billed} {me|my card} {twice|too much|two times}",
        "there is {a strange|an unknown|a wrong|a double} charge on my {card|account|bank statement}",
        "{my card|my account|I} was {debited|charged} but {I have no order|there is no order|the order failed}",
        "why {did you charge|was I charged} {twice|more|too much}", "double {charge|payment|debit}",
        "the amount {charged|debited} is {wrong|too high}",
    ], "A card that was charged twice is put right by the bank within a week."),
    "card_declined": ("payment", [
        "my {card|credit card|payment} {was|is} {declined|refused|rejected|not accepted}",
        "{payment|the payment|my payment} {failed|did not go through|does not work|was rejected}",
        "I {cannot|can't} pay {with my card|by card|for my order}",
        "why was my {card|payment} {declined|rejected|refused}", "paying {fails|does not work|is not possible}",
        "the {bank|website|shop} {refuses|rejects|declines} my card",
    ], "When a card is declined, check its limit and try the payment again."),
    "voucher": ("payment", [
        "my {voucher|gift card|coupon|discount code|promo code} {does not work|is not accepted|is rejected|has expired}",
        "how {can|do} I {use|redeem} {a|my} {voucher|gift card|coupon|discount code}",
        "do you {sell|have} {vouchers|gift cards}",
        "where do I {enter|type} {the|my} {voucher|coupon|discount code|code}",
        "{is there|do you have} a {discount|student discount|coupon|discount code|sale}",
        "how much is left on my {gift card|voucher}",
    ], "Enter a voucher or discount code on the last page before you pay."),
    "instalments": ("payment", [
        "{can|may} I pay in {instalments|rates|parts|monthly rates}",
        "do you {offer|have} {instalments|financing|monthly payments|credit}",
        "I {want|would like} to pay {later|monthly|in three parts|next month}", "{financing|instalments|monthly rates}",
        "how do {instalments|monthly payments} work", "is {financing|paying in parts|a monthly plan} possible",
    ], "Larger sums can be paid in monthly instalments."),
    "change_order": ("order", [
        "{can|may|could} I {add|remove} {something|an item|a product} {to|from} my order",
        "I {forgot|want to add|need to add} {something|an item|one more item} {in|to} my order",
        "{change|correct} the {delivery address|quantity|size|colour} of my order",
        "I {entered|gave|typed} the wrong {address|quantity|size|colour}",
        "how do I {change|edit|modify} {an|my} order", "{can|could} you send my order to {another|a different} address",
    ], "An order can be changed until it is packed: items, size, quantity and address."),
    "confirmation": ("order", [
        "I {did not get|have not received|never got} {a|an|the} {confirmation|order confirmation|confirmation email|order number}",
        "did you {get|receive} my order", "{has|was} my order {been received|received|placed|accepted}",
        "where {is|do I find} my {order number|order confirmation}",
        "I {am not sure|do not know} {if|whether} my order {went through|was placed|worked}", "please confirm my order",
        "what is my order number",
    ], "We confirm every order by email, with its order number."),
    "bulk": ("order", [
        "{do you give|is there} a {discount|better price|lower price} for {large|big|bulk} orders",
        "I {want|would like|need} to order {100|fifty|two hundred|a large number of} {pieces|items}",
        "{bulk|wholesale|business} {order|orders|prices}",
        "we are a {company|school|club} and {want|would like} to order {many|a lot|large quantities}",
        "can {companies|schools|businesses} order {from|with} you",
        "what is the {price|discount} for {large quantities|many pieces|wholesale}",
    ], "Companies and schools get a discount on bulk orders."),
    "gift_wrap": ("order", [
        "{can|could|do} you {wrap|gift wrap|pack} {it|my order} as a {gift|present}",
        "do you {offer|have} gift {wrapping|wrap|paper}",
        "it is a {gift|present|birthday present}, please {wrap it|leave out the price|hide the price}",
        "{gift|present} {wrapping|wrap|packing}",
        "can I add a {card|message|greeting} to {the gift|my present|the present}", "how much is gift {wrapping|wrap}",
    ], "Gift wrapping with a greeting card can be chosen in the basket."),
    "stock": ("product", [
        "is {the <product>|it|this item} {in stock|available|sold out}",
        "when will {the <product>|it|this item} be {back|available again|in stock again}",
        "do you {still|} have {the <product>|it} in stock",
        "{the <product>|it} is {sold out|not available|out of stock}", "how many {are|do you have} {left|in stock}",
        "can you {reserve|hold|keep} {one|the <product>|it} for me",
    ], "Items that are out of stock are usually available again within two weeks."),
    "size": ("product", [
        "which size {do I need|should I take|fits me}",
        "what {size|sizes|dimensions} {does it have|is the <product>|are there}",
        "how {big|large|tall|wide|heavy} is {it|the <product>}",
        "do you have {it|the <product>} in {another size|a larger size|a smaller size|size 42|medium}",
        "{size chart|size guide|measurements|dimensions}", "is {it|the <product>} {too big|too small|true to size}",
    ], "The size guide on each product page lists all measurements."),
    "manual": ("product", [
        "I {lost|need|cannot find} the {manual|instructions|user guide}",
        "{where|how} do I {find|get|download} the {manual|instructions|user guide}",
        "how do I {assemble|use|set up|build|clean} {it|the <product>}",
        "there {is no|are no|was no} {manual|instructions} in the box",
        "can you send me the {manual|instructions|user guide}", "{assembly|instructions|user manual} for the <product>",
    ], "Manuals and assembly instructions can be downloaded from the product page."),
    "spare_parts": ("product", [
        "do you {sell|have} {spare|replacement} parts", "I need a {spare|replacement} part for {my|the} <product>",
        "a {screw|part|piece} is missing", "where {can|do} I get {spare|replacement} parts",
        "{can|could} I order a {single|new|replacement} {part|screw|piece}",
        "{spare|replacement} parts for {my|the} <product>",
    ], "Spare parts can be ordered for ten years after the purchase."),
    "return_label": ("returns", [
        "I need a return label", "where {do I find|is|can I print} the return {label|form|slip}",
        "there is no return {label|slip|form} in the {box|parcel}",
        "{can|could} you send me a return {label|form|slip}", "how do I print the return {label|form}",
        "who pays {for the return|the return postage|for sending it back}", "are returns free",
    ], "Print the return label from your account; returning a parcel costs nothing."),
    "return_arrived": ("returns", [
        "did my return {arrive|reach you}", "has my return {arrived|been received|reached you}",
        "have you {got|received} {my return|the item I sent back|the goods I returned}",
        "what is the {status|state} of my return", "is my returned {parcel|item} {with you|there} {yet|already}",
        "I sent {it|the parcel|the item} back {last week|two weeks ago|ten days ago} and heard nothing",
    ], "We send an email as soon as your return has arrived."),
    "parking": ("store", [
        "{is there|do you have|are there} {parking|a car park|parking spaces}", "where {can|do} I park {my car|}",
        "{parking|car park}", "is parking {free|possible|expensive}", "can I {come|park} {with|near} {my car|the shop}",
        "how much {is|does} parking {cost|}", "is there {a bus stop|a train station|a tram} near the {shop|store}",
    ], "There is a free car park behind the shop, and a bus stop in front."),
    "wheelchair": ("store", [
        "is the {shop|store} {accessible|accessible by wheelchair|step-free|barrier-free}",
        "can I {enter|come|get in} with a {wheelchair|pram|walker}",
        "{is there|do you have} {a lift|an elevator|a ramp|a toilet|a disabled toilet}",
        "{wheelchair|barrier-free} access", "I use a wheelchair", "are there {stairs|steps} at the {entrance|door}",
    ], "The shop has a ramp, a lift and a toilet for wheelchair users."),
    "jobs": ("store", [
        "do you have {a job|jobs|open positions|vacancies}",
        "{can|could} I work {for you|in your shop|at your company}", "how {can|do} I apply {for a job|}",
        "I {want|would like} to {apply|work for you|apply for a job}", "are you {hiring|looking for staff}",
        "{jobs|careers|vacancies|internship}", "do you {offer|have} {internships|apprenticeships|summer jobs}",
    ], "Open positions and internships are listed on our careers page."),
    "app_crash": ("technical", [
        "the app {crashes|keeps crashing|freezes|does not start|closes itself}",
        "your app {does not work|is broken|hangs|is slow}",
        "{I cannot|I can't|how do I} {open|start|install|update} the app",
        "the app {shows|gives} {an error|an error message|a white screen|a black screen}",
        "since the {update|last update} the app {crashes|does not work|freezes}", "app {crash|error|problem}",
    ], "If the app crashes, install the newest version and start the phone again."),
    "website_error": ("technical", [
        "{the|your} {website|site|page|web shop} {does not load|is down|is slow|does not work|is broken}",
        "I get an error {on the website|on your site|when I open the page|in the browser}",
        "the {button|link|search|page} does {not work|nothing}",
        "{error|error message} {404|500|on the page|in the browser}",
        "the {website|page} {stays blank|stays white|is empty|keeps loading}",
        "your {site|website} {does not open|fails} in my browser", "I cannot {open|load|see} {the|your} {website|page}",
    ], "If the website does not load, clear the browser's cache and try again."),
    "basket": ("technical", [
        "my {basket|cart|shopping cart|shopping basket} is {empty|gone|wrong}",
        "I {cannot|can't} {put|add} {it|anything|the <product>} {in|to} the {basket|cart|shopping cart}",
        "the {basket|cart|checkout} {does not work|shows an error|is broken|hangs}",
        "items {disappear|vanish} from {my|the} {basket|cart}",
        "I {cannot|can't} {finish|complete} {the checkout|my purchase|the order form}",
        "the checkout {button|page} {does nothing|is stuck|does not load}",
    ], "If the basket is empty or the checkout hangs, allow cookies and sign in again."),
    "pairing": ("technical", [
        "{it|the <product>|my device} does not {connect|pair} {to wifi|with my phone|by bluetooth|}",
        "how do I {connect|pair} {it|the <product>|my device} {to wifi|with my phone|by bluetooth|}",
        "{bluetooth|wifi} {does not work|connection fails|problem}",
        "my phone does not find {the device|the <product>|it}", "{it|the device} {loses|drops} the {connection|wifi}",
        "{connection|pairing} {fails|is not possible}",
    ], "To connect a device by bluetooth or wifi, hold its button for five seconds."),
}


def subjects() -> dict[str, tuple[str, list[str]]]:
    """Every subject with its queue and its patterns."""
    known = {name: (label, QUESTIONS[name]) for name, label in FROM_CHAT.items()}
    return known | {name: (label, patterns) for name, (label, patterns, _) in OWN.items()}


def split(patterns: list[str]) -> tuple[list[str], list[str]]:
    """Patterns to learn from, and the one in six that only the checks see."""
    held_out = patterns[2::6]
    return [pattern for pattern in patterns if pattern not in held_out], held_out
